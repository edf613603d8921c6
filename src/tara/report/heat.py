"""A map laid over its picture in colours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLOURS = "inferno"
DIMMED = 0.55  # of the picture's brightness is left where the map is lowest
STRONGEST = 0.9  # cover of the picture where the map is highest


def heat_over(image: Image.Image, values: NDArray[np.floating]) -> Image.Image:
    """The picture, grey and dim, with a map in colours over it.

    Args:
        image: what was drawn.
        values: (height, width) at any resolution; scaled to its own range, so that weak maps can be seen too.

    Returns:
        an RGB picture of the image's size.
    """
    # imported here: a second of start-up that only a drawing needs
    from matplotlib import colormaps

    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    resized = Image.fromarray(scaled.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    heat = np.asarray(resized).clip(0, 1)[..., None]
    colour = np.asarray(colormaps[COLOURS](heat[..., 0]))[..., :3]
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None] / 255 * DIMMED
    cover = STRONGEST * heat
    mixed = (1 - cover) * grey + cover * colour
    return Image.fromarray((mixed * 255).round().astype(np.uint8))
