"""Picture settings at work: the studio that they name, and what it draws with."""

from typing import Any

from tara.bases import PRECISIONS
from tara.provenance import PictureSettings
from tara.sampling import Studio

LOADING = {"base", "revision", "variant", "vae", "prediction_type", "precision"}


def studio_of(settings: PictureSettings, device: str | None) -> Studio:
    """The studio that draws as the settings say.

    Raises:
        TaraError: when the base cannot be loaded, or there is no such device.
    """
    return Studio(
        settings.base,
        device=device,
        dtype=None if settings.precision is None else PRECISIONS[settings.precision],
        revision=settings.revision,
        variant=settings.variant,
        vae=settings.vae,
        prediction_type=settings.prediction_type,
    )


def drawing_settings(settings: PictureSettings) -> dict[str, Any]:
    """The part of the settings that a studio is called with, by the names of its own settings."""
    return settings.model_dump(exclude=LOADING, exclude_none=True)
