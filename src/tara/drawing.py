"""Picture settings at work: the studio that they name, and what it draws with."""

from typing import Any

import torch

from tara.provenance import PictureSettings
from tara.sampling import Studio

LOADING = {"base", "revision", "variant", "vae", "precision"}
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


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
    )


def drawing_settings(settings: PictureSettings) -> dict[str, Any]:
    """The part of the settings that a studio is called with, by the names of its own settings."""
    return settings.model_dump(exclude=LOADING, exclude_none=True)
