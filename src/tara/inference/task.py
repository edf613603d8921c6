"""Text-to-image, image-to-image or inpainting: the stock pipeline that settings ask for, and its own arguments."""

from pathlib import Path
from typing import Any

from PIL import Image

from tara.families.base import Base
from tara.families.family import Task
from tara.inference.denoising import scheduler_for
from tara.inference.settings import GenerationSettings
from tara.storage.images import read_image


def task_pipeline(base: Base, settings: GenerationSettings) -> tuple[Any, dict[str, Any]]:
    """The stock pipeline for these settings, and the arguments that only it takes.

    It shares every part with the base's, whose own settings stay as they are.
    """
    task: Task = "text-to-image"
    arguments: dict[str, Any] = {
        "width": settings.width or base.resolution,
        "height": settings.height or base.resolution,
    }
    if settings.image is not None:
        start = _fitted(_read(settings.image), settings, base.resolution)
        task, arguments = "image-to-image", {"image": start, "strength": settings.strength}
        if settings.mask is not None:
            mask = _read(settings.mask).convert("L").resize(start.size, Image.Resampling.NEAREST)
            task = "inpainting"
            arguments |= {"mask_image": mask, "width": start.width, "height": start.height}
    pipe = base.family.task_pipeline(base.pipe, task)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler_for(base, settings)
    return pipe, arguments


def _read(image: Image.Image | Path) -> Image.Image:
    return image.convert("RGB") if isinstance(image, Image.Image) else read_image(image)


def _fitted(image: Image.Image, settings: GenerationSettings, resolution: int) -> Image.Image:
    """The start image at the asked size; without one, its shape with the base's resolution as the short side."""
    scale = resolution / min(image.size)
    width, height = (max(8, round(side * scale / 8) * 8) for side in image.size)
    size = (settings.width or width, settings.height or height)
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
