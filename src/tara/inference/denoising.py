"""The state of one image in denoising: progress and result for the caller, latents and scheduler for the engine."""

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

PREVIEW_CELLS = 16  # largest side of a preview, in latents; decoding takes about 1 % of the time of an image


@dataclass(eq=False)
class Generation:
    """Progress and result of one image of a request in an `Engine`.

    ``on_change`` is called in the engine's thread after each step, and when the image or the failure is set.
    """

    request: GenerationRequest
    seed: int
    on_change: Callable[["Generation"], object] = lambda _: None
    preview_every: int = 0
    """Steps between previews; 0 for no previews. May be changed at any time."""
    step: int = 0
    steps: int = 0
    """Number of denoising steps; 0 while the image waits."""
    preview: Image.Image | None = None
    image: Image.Image | None = None
    failure: Exception | None = None
    cancelled: bool = False

    def cancel(self) -> None:
        """Stop generating this image. Its rows are free from the next step on."""
        self.cancelled = True

    @property
    def is_over(self) -> bool:
        """Whether the image is finished, has failed or was cancelled."""
        return self.cancelled or self.image is not None or self.failure is not None


class Denoising:
    """The denoising loop of diffusers' stock pipelines for one image. The caller makes the network calls.

    Each image has its own scheduler, because schedulers store earlier predictions. On every device, the noise is that
    of the stock pipeline with a CPU generator of this seed.

    Args:
        base: the base.
        settings: uses steps, scheduler, guidance_scale (None counts as 0), width and height.
        seed: seed of the initial noise, and of the noise that some schedulers add.
        guided: True for two rows, ``[unconditional, conditional]``; False for the conditional row only.

    Raises:
        TaraError: for a scheduler that does not fit the base, or for too many steps; see `scheduler_for`.
    """

    def __init__(self, base: Base, settings: GenerationSettings, seed: int, *, guided: bool) -> None:
        self.guided, self.guidance_scale = guided, settings.guidance_scale or 0.0
        self.step = 0
        self._scheduler = scheduler_for(base, settings)
        self.steps = len(self._scheduler.timesteps)  # second-order schedulers have more timesteps than requested
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
        # schedulers differ in dtype, and their rows share a call; diffusers' timestep embedding casts to float32 anyway
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
        """The decoded latents."""
        return _decoded(base, self._latents)

    def preview(self, base: Base) -> Image.Image:
        """A small preview, from the scheduler's estimate of the final latents, else from the current latents."""
        estimate = self._latents if self._image_estimate is None else self._image_estimate
        factor = max(1, max(estimate.shape[-2:]) // PREVIEW_CELLS)
        small = torch.nn.functional.avg_pool2d(estimate, factor) if factor > 1 else estimate
        return _decoded(base, small)


def _decoded(base: Base, latents: Tensor) -> Image.Image:
    from diffusers.image_processor import VaeImageProcessor

    images: Any = VaeImageProcessor().postprocess(base.decode_latents(latents), output_type="pil")
    return images[0]


def _step_arguments(scheduler: Any, generator: torch.Generator) -> dict[str, Any]:
    """Further arguments of ``scheduler.step``: the generator for schedulers that add noise, else none."""
    return {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
