"""Selects and calls diffusers' stock pipelines: task, scheduler, arguments and execution settings."""

import copy
import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tara.errors import TaraError, first_line
from tara.families.base import Base
from tara.families.family import Task
from tara.families.settings import ExecutionSettings
from tara.inference.settings import SCHEDULERS, GenerationSettings
from tara.storage.images import read_image

ZERO_SNR = "rescale_betas_zero_snr"  # diffusers' option for a noise schedule that ends in pure noise


def task_pipeline(base: Base, settings: GenerationSettings) -> tuple[Any, dict[str, Any]]:
    """The stock pipeline for these settings, and its additional arguments.

    It shares all components with the base's pipeline, which is not changed.
    """
    task: Task = "text-to-image"
    arguments: dict[str, Any] = {
        "width": settings.width or base.resolution,
        "height": settings.height or base.resolution,
    }
    if settings.image is not None:
        start = _resized(_read(settings.image), settings, base.resolution)
        task, arguments = "image-to-image", {"image": start, "strength": settings.strength}
        if settings.mask is not None:
            mask = _read(settings.mask).convert("L").resize(start.size, Image.Resampling.NEAREST)
            task = "inpainting"
            arguments |= {"mask_image": mask, "width": start.width, "height": start.height}
    pipe = base.family.task_pipeline(base.pipe, task)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler_for(base, settings)
    return pipe, arguments


def scheduler_for(base: Base, settings: GenerationSettings) -> Any:
    """A new scheduler for one image or batch, with its timesteps set.

    Its class is that of the base's scheduler unless the settings name another one.

    Raises:
        TaraError: as `make_scheduler`, and for more steps than the base's noise schedule has.
    """
    name, steps, most = settings.scheduler, settings.steps, base.noise_schedule.timesteps
    scheduler = copy.deepcopy(base.scheduler) if name is None else make_scheduler(name, base.scheduler.config, steps)
    if steps > most:
        raise TaraError(f"steps is {steps}, but this base has {most} timesteps. Give at most that many.")
    scheduler.set_timesteps(steps, device=base.device)
    # steps_offset moves all timesteps towards more noise, so fewer steps are possible than the schedule has
    if (first := float(scheduler.timesteps.max())) > most - 1:
        raise TaraError(
            f"steps is {steps}, with which this base's scheduler begins at timestep {first:g}; the noisiest that the "
            f"base has is {most - 1}. Give fewer steps."
        )
    return scheduler


def make_scheduler(name: str, config: Mapping[str, Any], steps: int) -> Any:
    """Make the scheduler of this name in `SCHEDULERS`, with a base's noise schedule and prediction type.

    Raises:
        TaraError: if the scheduler lacks an option of the base's noise schedule (diffusers would ignore the option), or
            if it does not support as many steps.
    """
    import diffusers

    kind, options = SCHEDULERS[name]
    scheduler = getattr(diffusers, kind)
    if config.get(ZERO_SNR) and ZERO_SNR not in inspect.signature(scheduler.__init__).parameters:
        raise TaraError(
            f"The scheduler '{name}' cannot start from pure noise, as this base does. Choose another one, such as "
            "ddim or dpm."
        )
    made = scheduler.from_config(config, **options)
    most = int(made.config.get("original_inference_steps") or made.config.num_train_timesteps)
    if steps > most:
        raise TaraError(f"steps is {steps}, but '{name}' takes at most {most}. 4 to 8 are usual.")
    return made


def call_pipeline(
    pipe: Any, settings: GenerationSettings, seeds: Sequence[int], on_step: Callable[[int, int], None], **arguments: Any
) -> list[Image.Image]:
    """Call a stock pipeline. ``on_step`` gets the number of finished steps and the number of all steps."""
    finished = 0

    def after_step(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal finished
        finished += 1  # second-order schedulers take more steps than requested
        on_step(finished, max(int(pipe.num_timesteps), finished))
        return tensors

    output = pipe(
        **arguments,
        num_inference_steps=settings.steps,
        # noise is made on the CPU, so that a seed means the same noise on every device
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        callback_on_step_end=after_step,
    )
    return list(output.images)


def stock_guidance(pipe: Any) -> float:
    """The default guidance scale of a pipeline call."""
    return float(inspect.signature(pipe.__call__).parameters["guidance_scale"].default)


def apply_execution_settings(base: Base, settings: ExecutionSettings, device: torch.device) -> None:
    """Permanently compile, slice or offload a base as the settings say.

    Args:
        base: the base. ``offload`` moves its parts to ``device`` while they compute, and then back to the CPU.
        settings: see `ExecutionSettings`.
        device: the device that computes.

    Raises:
        TaraError: for ``offload`` without a GPU, and ``attention_slicing`` between ``prepare`` and ``release``.
    """
    if settings.offload and device.type == "cpu":
        raise TaraError(
            "offload moves models between GPU and CPU memory, but this base runs on the CPU. Leave offload out."
        )
    if settings.attention_slicing:
        if base.processors.installed:
            raise TaraError("attention_slicing must be set before tara.prepare. Call tara.release first.")
        base.denoiser.set_attention_slice("auto")
    if settings.compile:
        base.denoiser.compile()
    if settings.offload:
        base.pipe.enable_model_cpu_offload(device=device)


@contextmanager
def compiler_failures() -> Generator[None]:
    """Turn a failure of torch.compile into a TaraError."""
    try:
        yield
    except Exception as failure:
        # the compiler takes a second to import, and a failure of its own has done so already
        if not type(failure).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise TaraError(f"The network cannot be compiled here ({first_line(failure)}). Leave compile out.") from failure


def _read(image: Image.Image | Path) -> Image.Image:
    return image.convert("RGB") if isinstance(image, Image.Image) else read_image(image)


def _resized(image: Image.Image, settings: GenerationSettings, resolution: int) -> Image.Image:
    """The start image resized to the requested size in pixels.

    If the settings give no width or height, its short side becomes ``resolution`` pixels, with the same shape.
    """
    scale = resolution / min(image.size)
    width, height = (max(8, round(side * scale / 8) * 8) for side in image.size)
    size = (settings.width or width, settings.height or height)
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
