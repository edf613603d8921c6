"""Every setting of a training run, defined once for Python, the command line and TOML."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast

from pydantic import BaseModel, Field, field_validator, model_validator

from tara.families.settings import BASE, PREDICTION, REVISION, VAE, VARIANT, Prediction
from tara.storage.file_names import file_name
from tara.storage.hub import is_repository, repository_name
from tara.storage.validation import build
from tara.training.data.captions import STYLE_PHRASE, SUBJECT_PHRASE, VARIED_STYLE_CAPTIONS, VARIED_SUBJECT_CAPTIONS
from tara.training.data.dreambooth import TABLE, subject_of

Targets = Literal["cross_kv", "attention"]
AlignmentForm = Literal["off", "l1", "squared"]
Precision = Literal["auto", "no", "fp16", "bf16"]
OptimizerName = Literal["adamw", "adamw8bit", "prodigy"]
ScheduleName = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
]  # diffusers' names
CaptionSource = Literal["fixed", "varied"]

RUN_SETTINGS = "settings.json"  # a recipe as a run folder keeps it


class ConceptSettings(BaseModel, frozen=True, extra="forbid"):
    """What one adapter learns: a folder of photos, the rare word that will stand for it, and its class word."""

    images: Path = Field(description="Folder with the concept's photos (3 to 5 are enough)")
    word: str = Field(description="Rare word that will stand for the concept, such as xlo")
    kind: str = Field(
        description="Class word: what the concept is, such as dog (for a style: style); needed, unless a "
        f"{TABLE} beside the photos' folder knows it"
    )
    name: str | None = Field(
        default=None, description="The concept's name in tables and file names; WORD KIND if left out"
    )
    prompt: str | None = Field(
        default=None, description=f"Training phrase; '{SUBJECT_PHRASE}', or '{STYLE_PHRASE}' for a style, if left out"
    )
    captions: tuple[str, ...] | None = Field(
        default=None, description="Caption templates with {word} and {kind}, in place of the training phrase"
    )
    masks: Path | None = Field(
        default=None, description="Folder of masks named as the photos, white on the subject, for the masked loss"
    )
    example_prompts: tuple[str, ...] | None = Field(
        default=None, description="Prompts with {word} and {kind} that the adapter's card shows; made up if left out"
    )
    out: Path | None = Field(default=None, description="File to write; WORD-KIND.safetensors if left out")
    is_style: bool = Field(default=False, description="The concept is the look of a whole picture, not a thing in it")

    @model_validator(mode="before")
    @classmethod
    def _a_table_may_know_the_class_word(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = {name: value for name, value in cast(dict[str, Any], values).items() if value is not None}
        if "kind" not in given and isinstance(given.get("images"), str | Path):
            subject = subject_of(Path(given["images"]))
            if subject is not None:
                return {"kind": subject.kind, "example_prompts": subject.prompts or None} | given
        return given

    @field_validator("word", "kind")
    @classmethod
    def _a_word_is_visible(cls, value: str) -> str:
        value = " ".join(value.split())
        if not value:
            raise ValueError("is empty; give the rare word (such as xlo) and the class word (such as dog)")
        return value

    @field_validator("captions")
    @classmethod
    def _a_caption_list_is_not_empty(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and not value:
            raise ValueError("is an empty list; leave it out, or give at least one template such as 'a {word} {kind}'")
        return value

    @field_validator("out")
    @classmethod
    def _an_adapter_is_a_safetensors_file(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix != ".safetensors":
            raise ValueError(f"is '{value}', but an adapter is a .safetensors file; call it {value.stem}.safetensors")
        return value

    @property
    def label(self) -> str:
        """The name that a person reads."""
        return self.name or f"{self.word} {self.kind}"

    @property
    def phrase(self) -> str:
        """The training phrase in full, for instance ``a photo of a xlo dog``."""
        return self.fill(self.prompt or (STYLE_PHRASE if self.is_style else SUBJECT_PHRASE))

    @property
    def file(self) -> Path:
        """Where the adapter is written."""
        return self.out or Path(f"{file_name(self.name or f'{self.word} {self.kind}')}.safetensors")

    @property
    def shown_prompts(self) -> tuple[str, ...]:
        """What the adapter's card shows as examples."""
        if self.example_prompts is not None:
            return tuple(self.fill(template) for template in self.example_prompts)
        return self.templates("varied")[:4]

    def fill(self, template: str) -> str:
        """The template with ``{word}`` and ``{kind}`` filled in; other braces stay as they are."""
        return template.replace("{word}", self.word).replace("{kind}", self.kind)

    def templates(self, source: CaptionSource) -> tuple[str, ...]:
        """The captions, filled in, of a photo that has none of its own."""
        if self.captions is not None:
            return tuple(self.fill(template) for template in self.captions)
        if source == "fixed":
            return (self.phrase,)
        varied = VARIED_STYLE_CAPTIONS if self.is_style else VARIED_SUBJECT_CAPTIONS
        return tuple(dict.fromkeys((self.phrase, *(self.fill(template) for template in varied))))


class TrainSettings(BaseModel, frozen=True, extra="forbid"):
    """How a training run goes; the field descriptions are the command line's help."""

    base: str = Field(default="toyland", description=BASE)
    revision: str | None = Field(default=None, description=REVISION)
    variant: str | None = Field(default=None, description=VARIANT)
    vae: str | None = Field(default=None, description=VAE)
    prediction_type: Prediction | None = Field(default=None, description=PREDICTION)
    targets: Targets = Field(
        default="cross_kv", description="Layers that learn: text keys and values only, or every attention projection"
    )
    tfm: bool = Field(default=True, description="Token focus mask: an adapter acts on its rare word's tokens only")
    tal: AlignmentForm = Field(
        default="l1", description="Token alignment loss between rare and class word: off, l1, squared"
    )
    tal_weight: float = Field(
        default=1.0, ge=0, le=1e6, description="Weight of the token alignment loss; 0 turns it off"
    )
    rank: int = Field(default=8, ge=1, le=256, description="Rank of the low-rank deltas")
    alpha: float | None = Field(
        default=None, gt=0, le=1e6, description="Scale of the deltas times rank; equal to the rank if left out"
    )
    freeze_down: bool = Field(
        default=False, description="Only the up matrices learn; the down matrices stay as they were drawn"
    )
    steps: int = Field(default=1000, ge=1, le=1_000_000, description="Optimiser steps")
    learning_rate: float | None = Field(
        default=None, gt=0, le=100, description="Learning rate; 1e-4 (AdamW) or 1 (Prodigy finds its own) if left out"
    )
    lr_scheduler: ScheduleName = Field(
        default="constant", description="Course of the learning rate, by diffusers' names"
    )
    lr_warmup_steps: int = Field(default=0, ge=0, description="Steps in which the learning rate rises from 0")
    batch_size: int = Field(default=1, ge=1, le=1024, description="Photos of each concept in one step")
    gradient_accumulation: int = Field(
        default=1, ge=1, le=1024, description="U-Net calls whose gradients one step sums up"
    )
    gradient_checkpointing: bool = Field(default=False, description="Use less memory and more time")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of noise, timesteps, order and first weights")
    mixed_precision: Precision = Field(
        default="auto",
        description="Precision of the frozen base: no (fp32), fp16, bf16, or auto, which is bf16 or fp16 on CUDA, as "
        "the GPU can, and fp32 elsewhere",
    )
    optimizer: OptimizerName = Field(
        default="adamw", description="adamw, adamw8bit (extra '8bit'), prodigy (extra 'prodigy')"
    )
    weight_decay: float = Field(default=1e-2, ge=0, description="Weight decay of the optimiser")
    max_grad_norm: float = Field(default=1.0, ge=0, description="Longest gradient of one concept; 0 does not clip")
    snr_gamma: float | None = Field(default=None, gt=0, description="Min-SNR weighting with this gamma (5 is usual)")
    prior_preservation: bool = Field(
        default=False, description="Train on pictures of the class too, to keep what it means"
    )
    prior_weight: float = Field(default=1.0, ge=0, le=1e6, description="Weight of the class pictures' loss")
    class_images: int = Field(
        default=100, ge=1, description="Number of class pictures; missing ones are made by the base"
    )
    class_folder: Path | None = Field(
        default=None,
        description="Folder of class pictures, one subfolder a class (or, for one class, the pictures themselves); "
        "class/ in the run folder if left out",
    )
    class_prompt: str | None = Field(
        default=None,
        description="Prompt of the class pictures, with {kind}; the training phrase without the rare word if left out",
    )
    captions: CaptionSource = Field(
        default="fixed",
        description="Captions of photos that have none: the training phrase, or a varied list around it",
    )
    resolution: int | None = Field(
        default=None,
        ge=8,
        le=4096,
        multiple_of=8,
        description="Side of the training pictures in pixels (with buckets, of the square of as many); the base's own",
    )
    crops: int = Field(default=1, ge=1, le=64, description="Different crops of each photo")
    buckets: bool = Field(
        default=False, description="Pictures keep the shape of their photo (aspect-ratio buckets), not cut to squares"
    )
    masked_loss: bool = Field(
        default=False, description="Learn the subject, by the photos' masks or transparency, not its background"
    )
    background_weight: float = Field(
        default=0.1, ge=0, le=1, description="What the background weighs in the masked loss; the subject weighs 1"
    )
    flip: bool = Field(default=True, description="Also train on each photo's mirror image")
    preview_every: int = Field(default=0, ge=0, description="Draw a preview every so many steps; 0 never does")
    preview_prompt: str | None = Field(
        default=None, description="Prompt of the previews, with {word} and {kind}; the training phrase if left out"
    )
    preview_images: int = Field(default=1, ge=1, le=64, description="Pictures in each preview, from seed on")
    checkpoint_every: int = Field(
        default=250, ge=0, description="Write a checkpoint every so many steps; 0 only when stopped"
    )
    report_to: Literal["none", "tensorboard", "wandb"] = Field(
        default="none", description="Tracker that also gets the losses"
    )
    project: str = Field(default="tara", min_length=1, description="The tracker's project")
    push_to_hub: bool = Field(
        default=False, description="Write hub/ with a model card into the run folder, and upload it to the model hub"
    )
    hub_model_id: str | None = Field(
        default=None, description="Repository to upload to, NAME or OWNER/NAME; called after the run if left out"
    )
    device: str | None = Field(default=None, description="cuda, cuda:1, mps or cpu; the best one found if left out")
    threads: int | None = Field(default=None, ge=1, le=1024, description="CPU threads; torch's own choice if left out")

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _toml_has_no_none(cls, value: Any) -> Any:
        return "no" if value in (None, False) else value  # TOML and YAML users write false

    @field_validator("hub_model_id")
    @classmethod
    def _a_repository_has_a_name_that_the_hub_takes(cls, value: str | None) -> str | None:
        if value is not None and not is_repository(value):
            raise ValueError(f"is '{value}', which no repository can be called; write it like rex or me/rex")
        return value

    @model_validator(mode="after")
    def _warm_up_fits(self) -> Self:
        if self.lr_warmup_steps > self.steps:
            raise ValueError(f"lr_warmup_steps is {self.lr_warmup_steps} but there are only {self.steps} steps")
        return self

    @property
    def scale(self) -> float:
        """The factor of every delta, alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate that the schedule multiplies."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1.0 if self.optimizer == "prodigy" else 1e-4

    @property
    def alignment_weight(self) -> float:
        """The weight of the token alignment loss, 0 when it is off."""
        return 0.0 if self.tal == "off" else self.tal_weight


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """A whole training run: one settings table and one or several concepts."""

    settings: TrainSettings = TrainSettings()
    concepts: tuple[ConceptSettings, ...] = Field(min_length=1)

    @property
    def run_folder(self) -> Path:
        """``rex.run`` beside ``rex.safetensors``; with several concepts ``rex+tom.run`` beside the first one."""
        first = self.concepts[0].file
        return first.with_name("+".join(concept.file.stem for concept in self.concepts) + ".run")

    @property
    def repository(self) -> str:
        """What the run's repository on the hub is called."""
        return self.settings.hub_model_id or repository_name(self.run_folder.stem)


def distinct_names(concepts: Sequence[ConceptSettings]) -> list[str]:
    """What each concept's files are called where those of all lie in one folder.

    As its adapter's file without the ending; where two have one file name in different folders, as the concepts.
    """
    stems = [concept.file.stem for concept in concepts]
    if len(set(stems)) == len(stems):
        return stems
    return [file_name(concept.label) for concept in concepts]  # no two have one label


def concept_settings(where: str = "", **values: Any) -> ConceptSettings:
    """One concept's settings from keyword arguments, see :class:`ConceptSettings`."""
    return build(ConceptSettings, values, where)


def train_settings(where: str = "", **values: Any) -> TrainSettings:
    """A run's settings from keyword arguments, see :class:`TrainSettings`."""
    return build(TrainSettings, values, where)
