"""How pictures are drawn: the settings, and the stock diffusers pipeline that they come to on a base."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from tara.adapters.adapter import Context
from tara.core.noise import generator_for
from tara.errors import TaraError, nearest
from tara.families.base import Backbone
from tara.inference.composers import Composer, composer_named
from tara.inference.prepare import TextOptions
from tara.storage.images import read_image

ZERO_SNR = "rescale_betas_zero_snr"  # what diffusers calls a noise schedule that ends in nothing but noise
STOCK_INPAINTING = (4, 9)  # input channels of the U-Nets that diffusers' inpainting pipelines take

SCHEDULERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    # latents are no pixels: what these two clip unless a base's own schedule tells them is a part of the picture
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
"""Names of schedulers for users, diffusers' classes, and what those need besides a base's own schedule."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How pictures are drawn.

    Attributes:
        steps: denoising steps.
        guidance_scale: classifier-free guidance; the base's own default when None, off at 1 or less.
        scheduler: a name in :data:`SCHEDULERS`; the base's own when None.
        negative_prompt: what to keep away from; adapters never act on it.
        width, height: in pixels, multiples of 8; the base's own when None, or the start picture's shape at that size.
        image: start picture (image-to-image, or the picture to repaint when there is a mask).
        strength: how much of the start picture is drawn anew, over 0 to 1.
        mask: white where the start picture is repainted.
        batch_size: pictures drawn in one U-Net call; changes a pixel by at most 1/255.
        context, composer, clip_skip: see :class:`tara.inference.prepare.TextOptions`.
    """

    steps: int = 30
    guidance_scale: float | None = None
    scheduler: str | None = None
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    image: Image.Image | str | Path | None = None
    strength: float = 0.8
    mask: Image.Image | str | Path | None = None
    batch_size: int = 4
    context: Context | None = None
    composer: str | Composer = "tara"
    clip_skip: int | None = None

    def __post_init__(self) -> None:
        composer_named(self.composer)
        for name in ("steps", "batch_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise TaraError(f"{name} is {getattr(self, name)}. Give a whole number, 1 or more.")
        for name in ("width", "height"):
            size = getattr(self, name)
            if size is not None and (size < 8 or size % 8):
                raise TaraError(f"{name} is {size}. Give a multiple of 8.")
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            hint = nearest(self.scheduler, SCHEDULERS)
            raise TaraError(f"There is no scheduler '{self.scheduler}'.{hint} Known: {', '.join(SCHEDULERS)}.")
        if self.mask is not None and self.image is None:
            raise TaraError("There is a mask but no image to repaint. Give the image too.")
        if self.image is not None and not (0 < self.strength <= 1 and int(self.steps * self.strength) >= 1):
            raise TaraError(
                f"strength is {self.strength} with {self.steps} steps, which draws nothing. Raise it, up to 1."
            )

    @property
    def text(self) -> TextOptions:
        """The part that concerns keys and values."""
        return TextOptions(
            guidance_scale=self.guidance_scale, clip_skip=self.clip_skip, context=self.context, composer=self.composer
        )


def sampling_settings(settings: Mapping[str, Any]) -> SamplingSettings:
    """Settings by name.

    Raises:
        TaraError: for a name that does not exist (with the nearest one) or an impossible value.
    """
    known = [field.name for field in fields(SamplingSettings)]
    for name in settings.keys() - set(known):
        raise TaraError(f"There is no sampling setting '{name}'.{nearest(name, known)} Known: {', '.join(known)}.")
    return SamplingSettings(**settings)


@dataclass(frozen=True, eq=False)
class Kept:
    """The part of a start picture that a mask leaves alone, put back after every denoising step.

    diffusers' inpainting does the same for U-Nets of 4 input channels, and takes no others without a picture as input.
    """

    start: Float[Tensor, "1 channels height width"]
    """Clean latents of the start picture."""
    stays: Bool[Tensor, "1 1 height width"]
    """Where the start picture stays."""

    def wearing(self, seeds: Sequence[int]) -> "NoisyKept":
        """The kept part of a batch of pictures, with noise that is a function of each one's own seed."""
        shape = self.start.shape[1:]
        noise = [torch.randn(shape, generator=generator_for(seed, "kept part")) for seed in seeds]
        return NoisyKept(self.start, self.stays, torch.stack(noise).to(self.start))


@dataclass(frozen=True, eq=False)
class NoisyKept:
    """The kept part of a batch, and the noise (rows, channels, height, width) that it wears until the last step."""

    start: Float[Tensor, "1 channels height width"]
    stays: Bool[Tensor, "1 1 height width"]
    noise: Float[Tensor, "rows channels height width"]

    def put_back(self, pipe: Any, index: int, latents: Tensor) -> Tensor:
        """The latents after step `index` of the pipeline's call, with the start picture, as noisy, in the kept part."""
        timesteps = pipe.scheduler.timesteps
        coming = len(timesteps) - int(pipe.num_timesteps) + index + 1  # a strength below 1 leaves early steps out
        start = self.start.expand_as(latents)
        if coming < len(timesteps):
            start = pipe.scheduler.add_noise(start, self.noise, timesteps[coming : coming + 1])
        return torch.where(self.stays, start.to(latents), latents)


@dataclass(frozen=True, eq=False)
class Drawer:
    """A stock pipeline, the arguments that only it takes, and what it must not repaint."""

    pipe: Any
    arguments: Mapping[str, Any]
    kept: Kept | None = None


def drawer(backbone: Backbone, settings: SamplingSettings) -> Drawer:
    """The stock pipeline for these settings; it shares every part with the base's, whose settings stay as they are.

    Raises:
        TaraError: for a start picture that cannot be read, and more steps than the base has timesteps.
    """
    from diffusers.pipelines.auto_pipeline import (
        AutoPipelineForImage2Image,
        AutoPipelineForInpainting,
        AutoPipelineForText2Image,
    )

    most = int(backbone.scheduler.config.num_train_timesteps)
    if settings.steps > most:
        raise TaraError(f"steps is {settings.steps}, but this base knows {most} timesteps. Give at most that many.")
    kept: Kept | None = None
    if settings.image is None:
        task = AutoPipelineForText2Image
        width, height = settings.width or backbone.resolution, settings.height or backbone.resolution
        extra: dict[str, Any] = {"width": width, "height": height}
    else:
        start = _fitted(_read(settings.image), settings, backbone.resolution)
        task, extra = AutoPipelineForImage2Image, {"image": start, "strength": settings.strength}
        if settings.mask is not None:
            mask = _read(settings.mask).convert("L").resize(start.size, Image.Resampling.NEAREST)
            if backbone.unet.config.in_channels in STOCK_INPAINTING:
                task = AutoPipelineForInpainting
                extra |= {"mask_image": mask, "width": start.width, "height": start.height}
            else:
                kept = _kept(backbone, start, mask)
    pipe: Any = task.from_pipe(backbone.pipe)
    pipe.set_progress_bar_config(disable=True)
    if settings.scheduler is not None:
        pipe.scheduler = make_scheduler(settings.scheduler, backbone.scheduler.config)
        few = int(pipe.scheduler.config.get("original_inference_steps") or most)
        if settings.steps > few:
            raise TaraError(
                f"steps is {settings.steps}, but '{settings.scheduler}' takes at most {few}. 4 to 8 are usual."
            )
    return Drawer(pipe, extra, kept)


def _kept(backbone: Backbone, start: Image.Image, mask: Image.Image) -> Kept:
    pixels: Tensor = backbone.pipe.image_processor.preprocess(start)
    latents, _ = backbone.encode_images(pixels)
    small = mask.resize((latents.shape[3], latents.shape[2]), Image.Resampling.NEAREST)
    stays = torch.from_numpy(np.asarray(small) < 128)[None, None]
    return Kept(latents, stays.to(latents.device))


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A scheduler by its name in :data:`SCHEDULERS`, with a base's noise schedule and prediction type.

    Raises:
        TaraError: for one that does not know all of the base's noise schedule, which diffusers would leave out.
    """
    import diffusers

    kind, options = SCHEDULERS[name]
    scheduler = getattr(diffusers, kind)
    if config.get(ZERO_SNR) and ZERO_SNR not in inspect.signature(scheduler.__init__).parameters:
        raise TaraError(
            f"The scheduler '{name}' cannot begin with nothing but noise, as this base does. Choose another one, "
            "such as ddim or dpm."
        )
    return scheduler.from_config(config, **options)


def _read(image: Image.Image | str | Path) -> Image.Image:
    return image.convert("RGB") if isinstance(image, Image.Image) else read_image(Path(image))


def _fitted(image: Image.Image, settings: SamplingSettings, resolution: int) -> Image.Image:
    """The start picture at the asked size; without one, its shape with the base's resolution as the short side."""
    scale = resolution / min(image.size)
    width, height = (max(8, round(side * scale / 8) * 8) for side in image.size)
    size = (settings.width or width, settings.height or height)
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
