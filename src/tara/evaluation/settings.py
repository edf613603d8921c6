"""How pictures are looked at: every setting once, for Python and the command line."""

from pydantic import BaseModel, Field

JUDGE = "toyland"
"""The name of the embedded world's judge among detectors."""
NOTHING = "none"
"""The name of no encoder at all."""
DETECTOR = "google/owlv2-base-patch16-ensemble"


class EvaluationSettings(BaseModel, frozen=True, extra="forbid"):
    """What finds subjects and what compares them; models by hub id or local folder."""

    detector: str | None = Field(
        default=None,
        description="What finds the subjects: toyland (its judge), or an OWLv2 or Grounding DINO model by hub id or "
        f"folder; toyland for pictures of that base and {DETECTOR} for others if left out",
    )
    dino: str = Field(default="facebook/dinov2-base", description="Encoder of identity: a DINOv2 by hub id or folder")
    clip: str = Field(
        default="openai/clip-vit-base-patch32",
        description="Encoder of CLIP-I and CLIP-T: a CLIP by hub id or folder, or none",
    )
    plain_dino: str = Field(
        default="facebook/dino-vits16",
        description="Encoder of the papers' DINO, on whole pictures: a ViT by hub id or folder, or none",
    )
    confidence: float | None = Field(
        default=None, ge=0, le=1, description="Least confidence of the detector; its own family's if left out"
    )
    same_subject: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="Least likeness that counts as the subject; half-way between its own photos and the other "
        "subjects' if left out",
    )
    device: str | None = Field(default=None, description="cuda, mps or cpu; the best one found if left out")
    batch_size: int = Field(default=4, ge=1, le=1024, description="Pictures drawn and looked at together")
