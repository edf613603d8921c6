"""A map as a coloured overlay on an image."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BRIGHTNESS = 0.55  # of the grey image where the map is lowest
OPACITY = 0.9  # of the colours where the map is highest


def heat_over(image: Image.Image, values: NDArray[np.floating]) -> Image.Image:
    """The image in dim grey under a map in colours, as RGB.

    Args:
        image: of any size, which the result has too.
        values: (height, width) at any resolution; scaled to its own range, so that weak maps are visible too.
    """
    from matplotlib import colormaps  # here, because it takes a second to import

    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    resized = Image.fromarray(scaled.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    heat = np.asarray(resized).clip(0, 1)
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None] / 255 * BRIGHTNESS
    cover = OPACITY * heat[..., None]
    mixed = (1 - cover) * grey + cover * np.asarray(colormaps["inferno"](heat))[..., :3]
    return Image.fromarray((mixed * 255).round().astype(np.uint8))
