"""All settings of a generation, defined once for Python and the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, InstanceOf, field_validator, model_validator

from tara.adapters.card import Context
from tara.errors import nearest
from tara.inference.composers import COMPOSERS, Composer, composer_named, default_composer

if TYPE_CHECKING:
    from tara.inference.active_adapter import ActiveAdapters

SchedulerName = Literal["ddim", "ddpm", "dpm", "euler", "euler_a", "heun", "lcm", "pndm", "unipc"]
SCHEDULERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    # by default these two clip predicted values as if they were pixels, which would damage latents
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "dpm": ("DPMSolverMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),  # as the published bases have it
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""From our scheduler names to diffusers' class and its options beyond those of the base's scheduler."""


class GenerationSettings(BaseModel):
    """How images are generated; the descriptions are the command line's help.

    ``image`` and ``mask`` may be PIL images in Python, and ``composer`` a `Composer` of your own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    negative_prompt: str | None = Field(
        default=None, description="Negative prompt; composer tara keeps adapters out of it"
    )
    steps: int = Field(default=30, ge=1, le=1000, description="Denoising steps")
    guidance_scale: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Classifier-free guidance scale; off at 1 or less [default: the base's; 7.5 for sd15, 5 for sdxl]",
    )
    scheduler: SchedulerName | None = Field(
        default=None, description="Sampler: dpm is DPM++, euler_a is Euler ancestral [default: the base's]"
    )
    width: int | None = Field(
        default=None,
        ge=8,
        le=8192,
        multiple_of=8,
        description="Width in pixels [default: the base's; 512 for sd15, 1024 for sdxl]",
    )
    height: int | None = Field(
        default=None, ge=8, le=8192, multiple_of=8, description="Height in pixels [default: the base's, as the width]"
    )
    image: Path | InstanceOf[Image.Image] | None = Field(
        default=None, description="Image to start from (image-to-image)"
    )
    strength: float = Field(
        default=0.8, gt=0, le=1, description="Denoising strength: how much of --image changes; 1 replaces it"
    )
    mask: Path | InstanceOf[Image.Image] | None = Field(
        default=None, description="Inpaint --image where this image is white"
    )
    composer: str | InstanceOf[Composer] | None = Field(
        default=None,
        description="How adapters are combined: "
        + "; ".join(f"{name}: {composer.description}" for name, composer in COMPOSERS.items())
        + " [default: regions for several subjects if an adapter changes more than the text's keys and values, else "
        "tara]",
    )
    region: tuple[str, ...] = Field(
        default=(),
        description="Region of a rare word's adapter, once per word: xlo=left (or right, top, bottom, everywhere), "
        "a box xlo=0,0,0.5,1 (left, top, right, bottom as fractions) or a mask image xlo=mask.png [default: from "
        "attention maps]",
    )
    context: Context | None = Field(
        default=None,
        description="Input of the deltas: the rare word's embedding in the prompt, or in the instance prompt (delta) "
        "[default: the adapter's]",
    )
    clip_skip: int | None = Field(default=None, ge=0, description="Number of last text-encoder layers to skip")

    @model_validator(mode="before")
    @classmethod
    def _diffusers_name_of_steps(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "num_inference_steps" not in values:
            return values  # pyright: ignore[reportUnknownVariableType]
        renamed = cast(dict[str, Any], values)
        if "steps" in renamed:
            raise ValueError("steps and num_inference_steps are the same; give one of them")
        return {"steps" if name == "num_inference_steps" else name: value for name, value in renamed.items()}

    @field_validator("scheduler", mode="before")
    @classmethod
    def _a_known_scheduler(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in SCHEDULERS:
            hint = nearest(value, SCHEDULERS)
            raise ValueError(f"is '{value}', which does not exist.{hint} Choose one of {', '.join(SCHEDULERS)}")
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        composer = None if self.composer is None else composer_named(self.composer)
        if self.region and composer is not None and not composer.regional:
            raise ValueError("region needs the composer 'regions'; choose it, or leave region out")
        if self.image is None:
            for name in ("mask", "strength"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} needs an image to start from; give the image too, or leave {name} out")
        elif int(self.steps * self.strength) < 1:
            raise ValueError(f"strength is {self.strength} with {self.steps} steps, which changes nothing; raise it")
        return self

    def composer_for(self, adapters: "ActiveAdapters") -> Composer:
        """The chosen composer. If none is chosen: `regions` if regions are given, else `default_composer`."""
        if self.composer is None:
            return COMPOSERS["regions"] if self.region else default_composer(adapters)
        return composer_named(self.composer)
