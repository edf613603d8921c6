"""Maps over an image: an attention map as a heat map; regions, each with a colour and a word."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#f0e442", "#0072b2", "#d55e00", "#999999")
"""Distinguishable with any colour vision (Okabe and Ito, Color Universal Design, 2008)."""
OPACITY = 0.45  # opacity of the regions' colours
SMALLEST = 384  # longest side in pixels, so that words can be read
BRIGHTNESS = 0.55  # brightness of the grey image where the map is lowest
HEAT_OPACITY = 0.9  # opacity of the colours where the map is highest


def regions_over(image: Image.Image, labels: NDArray[np.integer], words: Sequence[str]) -> Image.Image:
    """The image with coloured regions and their words, as RGB. Pixels outside all regions are unchanged.

    Args:
        image: of any size; small ones are enlarged.
        labels: (height, width) at any resolution; 1 is the first of ``words``, 0 is no region.
        words: the word of each label, from 1.
    """
    factor = max(1, SMALLEST / max(image.size))
    size = (round(image.width * factor), round(image.height * factor))
    over = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    cells = Image.fromarray(labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    font = ImageFont.load_default(max(14, max(size) // 24))
    for number, word in enumerate(words, start=1):
        mask = np.asarray(cells) == number
        colour = COLOURS[(number - 1) % len(COLOURS)]
        tint = Image.fromarray((mask * round(255 * OPACITY)).astype(np.uint8))
        over.paste(Image.new("RGB", size, colour), mask=tint)
        if mask.any():
            y, x = (int(np.median(at)) for at in mask.nonzero())
            ImageDraw.Draw(over).text((x, y), word, "#fff", font, "mm", stroke_width=3, stroke_fill="#000")
    return over


def heat_over(image: Image.Image, values: NDArray[np.floating]) -> Image.Image:
    """The image in dim grey with a coloured map over it, as RGB.

    Args:
        image: of any size, which the result has too.
        values: (height, width) at any resolution; scaled to its own range, so that weak maps are visible too.
    """
    from matplotlib import colormaps  # imported here, because the import takes a second

    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    resized = Image.fromarray(scaled.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    heat = np.asarray(resized).clip(0, 1)
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None] / 255 * BRIGHTNESS
    cover = HEAT_OPACITY * heat[..., None]
    mixed = (1 - cover) * grey + cover * np.asarray(colormaps["inferno"](heat))[..., :3]
    return Image.fromarray((mixed * 255).round().astype(np.uint8))
