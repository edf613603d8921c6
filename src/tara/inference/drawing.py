"""Picture settings at work: the studio that they name, and what it draws with."""

from typing import Any

from tara.families.loading import PRECISIONS
from tara.families.settings import ExecutionSettings
from tara.inference.pipeline import Studio
from tara.inference.provenance import PictureSettings

LOADING = {"base", "revision", "variant", "vae", "prediction_type", "precision"}


def studio_of(settings: PictureSettings, device: str | None, execution: ExecutionSettings | None = None) -> Studio:
    """The studio that draws as the settings say.

    Raises:
        TaraError: when the base cannot be loaded, or there is no such device, and for ``offload`` without a GPU.
    """
    return Studio(
        settings.base,
        device=device,
        dtype=None if settings.precision is None else PRECISIONS[settings.precision],
        revision=settings.revision,
        variant=settings.variant,
        vae=settings.vae,
        prediction_type=settings.prediction_type,
        **({} if execution is None else execution.model_dump()),
    )


def drawing_settings(settings: PictureSettings) -> dict[str, Any]:
    """The part of the settings that a studio is called with, by the names of its own settings."""
    return settings.model_dump(exclude=LOADING, exclude_none=True)
