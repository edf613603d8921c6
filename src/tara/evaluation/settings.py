"""All settings of an evaluation, defined once for Python and the command line."""

from pydantic import BaseModel, Field

NO_MODEL = "none"  # instead of a model's name: the model's metrics are left out


class EvaluationSettings(BaseModel, frozen=True, extra="forbid"):
    """The models of an evaluation, each a hub id or a local folder, and their thresholds."""

    detector: str = Field(
        default="google/owlv2-base-patch16-ensemble",
        description="Object detector, an OWLv2, OWL-ViT or Grounding DINO: hub id or folder",
    )
    dino: str = Field(
        default="facebook/dinov2-base",
        description="Image encoder for identity and leakage, a DINOv2: hub id or folder",
    )
    clip: str = Field(
        default="openai/clip-vit-base-patch32",
        description="CLIP model for CLIP-I and CLIP-T: hub id, folder, or none",
    )
    plain_dino: str = Field(
        default="facebook/dino-vits16",
        description="Image encoder for the DINO score of whole images, a ViT: hub id, folder, or none",
    )
    confidence: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Minimum confidence of a detection [default: 0.2 for OWLv2, 0.3 for Grounding DINO]",
    )
    same_subject: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="Identity threshold: similarity from which a detection counts as the subject [default: half-way "
        "between the similarity of its photos to each other and to those of the most similar other subject]",
    )
    device: str | None = Field(default=None, description="cuda, mps or cpu [default: the best one found]")
    batch_size: int = Field(default=4, ge=1, le=1024, description="Images generated or scored at a time")
