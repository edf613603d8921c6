"""All settings of a training run, defined once for Python, the command line and TOML."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from tara.families.settings import BaseSettings
from tara.storage.file_names import file_name
from tara.storage.hub import is_repository, repository_name
from tara.storage.validation import build
from tara.training.concept_settings import CaptionSource, ConceptSettings

if TYPE_CHECKING:
    from tara.families.family import Defaults

Targets = Literal["cross_kv", "attention"]
AlignmentForm = Literal["off", "l1", "squared"]
OptimizerName = Literal["adamw", "adamw8bit", "prodigy"]
ScheduleName = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
]  # diffusers' names
TrackerName = Literal["none", "tensorboard", "wandb"]

RANDOM = "random"
BASE_DEFAULTS = ("rank", "alpha", "learning_rate", "steps", "batch_size", "lr_scheduler", "resolution", "flip")
"""Settings whose default is the base's, see `tara.families.family.Defaults`."""


class TrainSettings(BaseSettings, frozen=True, extra="forbid"):
    """How a training run goes; the descriptions are the command line's help."""

    device: str | None = Field(default=None, description="cuda, cuda:1, mps or cpu [default: the best one found]")
    targets: Targets = Field(
        default="cross_kv",
        description="Trained layers: cross_kv (cross-attention keys and values) or attention (all attention "
        "projections)",
    )
    token_mask: bool = Field(default=True, description="Token focus masking: act on the rare word's tokens only")
    alignment_loss: AlignmentForm = Field(default="l1", description="Token alignment loss between rare and class word")
    alignment_weight: float = Field(default=1.0, ge=0, le=1e6, description="Weight of the token alignment loss")
    alignment_subwords: Literal["mean", "each"] = Field(
        default="mean", description="Align the mean key of the rare word's tokens, or each token's key (published code)"
    )
    rank: int = Field(default=8, ge=1, le=256, description="LoRA rank")
    alpha: float | None = Field(default=None, gt=0, le=1e6, description="LoRA alpha [default: the rank]")
    init_lora_weights: Literal["uniform", "gaussian"] = Field(
        default="uniform", description="First LoRA down matrices: uniform (as PEFT), or gaussian (published code)"
    )
    freeze_down: bool = Field(default=False, description="Train the LoRA up matrices only (LoRA-FA)")
    steps: int = Field(default=1000, ge=1, le=1_000_000, description="Training steps")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="Learning rate of all trained weights [default: the base's; 1e-4 for sd15, sdxl]",
    )
    lr_scheduler: ScheduleName = Field(default="constant", description="Learning-rate schedule")
    lr_warmup_steps: int = Field(default=0, ge=0, description="Warm-up steps of the learning rate")
    batch_size: int = Field(default=1, ge=1, le=1024, description="Batch size of each concept")
    gradient_accumulation_steps: int = Field(default=1, ge=1, le=1024, description="Gradient accumulation steps")
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations to save memory (slower)")
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**63,
        description="Seed of noise, timesteps, data order and initial weights, or random, which is shown and stored",
        json_schema_extra={"word": RANDOM},
    )
    optimizer: OptimizerName = Field(
        default="adamw", description="Optimizer; adamw8bit and prodigy need an extra package"
    )
    weight_decay: float = Field(default=1e-2, ge=0, description="Weight decay")
    max_grad_norm: float = Field(default=1.0, ge=0, description="Maximum gradient norm of each concept (0: off)")
    snr_gamma: float | None = Field(default=None, gt=0, description="Min-SNR gamma; 5 is usual [default: off]")
    prior_preservation: bool = Field(default=False, description="Prior preservation: also train on class images")
    prior_loss_weight: float = Field(default=1.0, ge=0, le=1e6, description="Weight of the prior preservation loss")
    num_class_images: int = Field(
        default=100, ge=1, description="Number of class images; the base generates missing ones"
    )
    class_folder: Path | None = Field(
        default=None, description="Folder of class images [default: class/ in the run folder]"
    )
    class_prompt: str | None = Field(
        default=None, description="Prompt of the class images [default: the instance prompt without the rare word]"
    )
    captions: CaptionSource = Field(
        default="fixed", description="Captions of photos that have none: the instance prompt, or varied templates"
    )
    resolution: int | None = Field(
        default=None,
        ge=8,
        le=4096,
        multiple_of=8,
        description="Side of the training images in pixels [default: the base's; 512 for sd15, 1024 for sdxl]",
    )
    size_conditioning: Literal["crop", "resolution"] = Field(
        default="crop", description="SDXL's size conditioning: each crop's own, or the resolution (published code)"
    )
    shuffle_tags: bool = Field(
        default=False, description="Shuffle the captions' tags, the parts between commas (kohya: shuffle_caption)"
    )
    keep_tags: int = Field(
        default=0, ge=0, le=100, description="First tags of a caption that stay in place (kohya: keep_tokens)"
    )
    caption_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Fraction of training images whose caption is left empty"
    )
    noise_offset: float = Field(
        default=0.0, ge=0, le=1, description="Noise offset, for darker and brighter images; 0.05 is usual"
    )
    crops: int = Field(default=1, ge=1, le=64, description="Number of crops of each photo")
    buckets: bool = Field(default=False, description="Aspect-ratio buckets instead of square crops")
    masked_loss: bool = Field(default=False, description="Weight the loss by the photos' masks or transparency")
    background_weight: float = Field(default=0.1, ge=0, le=1, description="Weight of the background in the masked loss")
    flip: bool = Field(default=True, description="Also train on horizontally flipped photos")
    preview_every: int | None = Field(
        default=None, ge=0, description="Steps between previews (0: none) [default: a tenth of the steps]"
    )
    preview_prompt: str | None = Field(default=None, description="Prompt of previews [default: the instance prompt]")
    preview_images: int = Field(default=1, ge=1, le=64, description="Number of images in each preview")
    checkpoint_every: int = Field(default=250, ge=0, description="Steps between checkpoints (0: only at the end)")
    save_every: int = Field(
        default=0, ge=0, description="Steps between adapters that are kept, OUT-step-000500.safetensors (0: none)"
    )
    report_to: TrackerName = Field(default="none", description="Also log the losses to this tracker")
    project: str = Field(default="tara", min_length=1, description="Project name in the tracker")
    push_to_hub: bool = Field(default=False, description="Upload the adapter with a model card to the model hub")
    hub_model_id: str | None = Field(default=None, description="Hub repository, OWNER/NAME [default: the run's name]")
    threads: int | None = Field(default=None, ge=1, le=1024, description="CPU threads [default: PyTorch's]")

    @field_validator("seed", mode="before")
    @classmethod
    def _draw_a_random_seed(cls, value: Any) -> Any:
        if value == -1:  # -1 means random in other tools
            raise ValueError(f"= -1 is refused: give 0 or more, or '{RANDOM}' for a random seed")
        if value != RANDOM:
            return value
        if os.environ.get("WORLD_SIZE", "1") != "1":  # each process would draw a different seed
            raise ValueError("is random, but several processes were launched, which need one seed; give a number")
        return secrets.randbelow(2**32)

    @field_validator("hub_model_id")
    @classmethod
    def _a_repository_has_a_name_that_the_hub_takes(cls, value: str | None) -> str | None:
        if value is not None and not is_repository(value):
            raise ValueError(f"is '{value}', which is not a valid repository name; write it like rex or me/rex")
        return value

    @model_validator(mode="after")
    def _warm_up_fits(self) -> Self:
        if self.lr_warmup_steps > self.steps:
            raise ValueError(
                f"lr_warmup_steps is {self.lr_warmup_steps}, but steps is only {self.steps}; give fewer warm-up steps"
            )
        return self

    def with_defaults(self, defaults: Defaults) -> TrainSettings:
        """The settings, with the base's default for each value that the user has not given."""
        missing = {name: getattr(defaults, name) for name in BASE_DEFAULTS if name not in self.model_fields_set}
        if self.optimizer == "prodigy":  # prodigy finds the learning rate itself
            missing.pop("learning_rate", None)
        return self.model_copy(update=missing)

    @property
    def scale(self) -> float:
        """The factor of every delta, alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate that the schedule multiplies."""
        return self.learning_rate or (1.0 if self.optimizer == "prodigy" else 1e-4)

    @property
    def aligns(self) -> bool:
        """Whether the token alignment loss is used."""
        return self.alignment_loss != "off" and self.alignment_weight > 0

    @property
    def preview_interval(self) -> int:
        """Steps between previews, 0 for none."""
        return max(1, self.steps // 10) if self.preview_every is None else self.preview_every

    def kept_steps(self) -> range:
        """The steps, without the last one, whose adapters are also saved; empty if `save_every` is 0."""
        return range(self.save_every, self.steps, self.save_every) if self.save_every else range(0)

    @property
    def acts_on_its_word_only(self) -> bool:
        """Whether an adapter changes nothing without its rare word in the prompt."""
        return self.token_mask and self.targets == "cross_kv"

    @property
    def uses_class_images(self) -> bool:
        """Whether prior preservation changes anything."""
        return self.prior_preservation and self.prior_loss_weight > 0 and not self.acts_on_its_word_only


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """A whole training run: one settings table and one or several concepts."""

    settings: TrainSettings
    concepts: tuple[ConceptSettings, ...] = Field(min_length=1)

    @property
    def run_folder(self) -> Path:
        """``rex.run`` beside ``rex.safetensors``; with several concepts ``rex+tom.run`` beside the first one."""
        first = self.concepts[0].file
        return first.with_name("+".join(concept.file.stem for concept in self.concepts) + ".run")

    @property
    def repository(self) -> str:
        """Name of the run's repository on the hub."""
        return self.settings.hub_model_id or repository_name(self.run_folder.stem)


def distinct_names(concepts: Sequence[ConceptSettings]) -> list[str]:
    """A distinct file name for each concept: its adapter's name, or its label if two adapters have the same name."""
    stems = [concept.file.stem for concept in concepts]
    return stems if len(set(stems)) == len(stems) else [file_name(concept.label) for concept in concepts]


def concept_settings(**values: Any) -> ConceptSettings:
    """One concept's settings from keyword arguments; raises TaraError with one sentence about a wrong value."""
    return build(ConceptSettings, values)


def train_settings(**values: Any) -> TrainSettings:
    """A run's settings from keyword arguments; raises TaraError with one sentence about a wrong value."""
    return build(TrainSettings, values)
