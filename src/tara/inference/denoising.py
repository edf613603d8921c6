"""One image of a request between two network calls: what its owner sees of it, its latents and its scheduler."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tara.families.base import Base
from tara.inference.request import GenerationRequest
from tara.inference.settings import GenerationSettings
from tara.inference.stock_pipeline import scheduler_for

PREVIEW_CELLS = 16  # sides of a preview in latents: decoding one takes a hundredth of an image's time


@dataclass(eq=False)
class Generation:
    """One image of a request on its way through an `Engine`, and its result.

    ``on_change`` is called in the engine's thread when a step, a preview, the image or the failure is there.
    """

    request: GenerationRequest
    seed: int
    on_change: Callable[["Generation"], object] = lambda _: None
    preview_every: int = 0
    """Steps between previews, 0 for none; may be changed at any time."""
    step: int = 0
    steps: int = 0
    """0 until it is in flight."""
    preview: Image.Image | None = None
    image: Image.Image | None = None
    failure: Exception | None = None
    cancelled: bool = False

    def cancel(self) -> None:
        """Stop generating it; its rows are free at the next step."""
        self.cancelled = True

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.cancelled or self.image is not None or self.failure is not None


class Denoising:
    """The denoising of one image, for a caller who evaluates the network; the loop of diffusers' stock pipelines.

    A scheduler remembers earlier predictions, and so each image has one. The noise is the stock pipeline's for a CPU
    generator with this seed, whatever the device.

    Args:
        base: what is generated on.
        settings: steps, scheduler, guidance_scale (resolved), width and height are used.
        seed: of the initial noise, and of the scheduler's where it adds some.
        guided: whether the network gets two rows, ``[unconditional, conditional]``, or the conditional one alone.

    Raises:
        TaraError: for a scheduler that does not fit the base, or more steps than it has.
    """

    def __init__(self, base: Base, settings: GenerationSettings, seed: int, *, guided: bool) -> None:
        self.guided, self.guidance_scale = guided, settings.guidance_scale or 0.0
        self.step = 0
        self._scheduler = scheduler_for(base, settings)
        self.steps = len(self._scheduler.timesteps)  # second-order schedulers take more than they were asked for
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._arguments = _step_arguments(self._scheduler, self._generator)
        height, width = settings.height or base.resolution, settings.width or base.resolution
        shape = (int(base.vae.config.latent_channels), height // base.vae_scale, width // base.vae_scale)
        noise = torch.randn((1, *shape), generator=self._generator, dtype=base.dtype).to(base.device)
        self._latents: Tensor = noise * self._scheduler.init_noise_sigma
        self._image_estimate: Tensor | None = None

    @property
    def rows(self) -> int:
        """Rows of the next network call."""
        return 2 if self.guided else 1

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in latents."""
        return self._latents.shape[-2], self._latents.shape[-1]

    @property
    def is_done(self) -> bool:
        return self.step == self.steps

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Latents (rows, channels, height, width) and timesteps (rows,) of the next network call."""
        timestep = self._scheduler.timesteps[self.step]
        scaled = self._scheduler.scale_model_input(self._latents, timestep)
        # float32 for every scheduler, as diffusers' timestep embedding makes it: rows of several schedulers mix
        return scaled.expand(self.rows, -1, -1, -1), timestep.to(torch.float32).expand(self.rows)

    def advance(self, prediction: Tensor) -> None:
        """Take the network's prediction (rows, channels, height, width) and make one step."""
        if self.guided:  # classifier-free guidance (arXiv 2207.12598)
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + self.guidance_scale * (conditional - unconditional)
        timestep = self._scheduler.timesteps[self.step]
        output = self._scheduler.step(prediction, timestep, self._latents, **self._arguments)
        self._latents = output.prev_sample
        self._image_estimate = output.get("pred_original_sample")
        self.step += 1

    def image(self, base: Base) -> Image.Image:
        """The image that the latents stand for."""
        return _decoded(base, self._latents)

    def preview(self, base: Base) -> Image.Image:
        """A small image of what is to be expected, from the scheduler's estimate where it has one."""
        estimate = self._latents if self._image_estimate is None else self._image_estimate
        factor = max(1, max(estimate.shape[-2:]) // PREVIEW_CELLS)
        small = torch.nn.functional.avg_pool2d(estimate, factor) if factor > 1 else estimate
        return _decoded(base, small)


def _decoded(base: Base, latents: Tensor) -> Image.Image:
    from diffusers.image_processor import VaeImageProcessor

    images: Any = VaeImageProcessor().postprocess(base.decode_latents(latents), output_type="pil")
    return images[0]


def _step_arguments(scheduler: Any, generator: torch.Generator) -> dict[str, Any]:
    """What ``step`` takes besides prediction, timestep and latents: the generator, where it adds noise."""
    return {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
