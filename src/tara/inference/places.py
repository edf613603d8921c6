"""Where a user wants a concept to be in the image: a name, a box in fractions, or a mask image."""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tara.errors import TaraError, nearest
from tara.storage.images import read_image

EVERYWHERE = "everywhere"
BOXES = {
    "left": (0.0, 0.0, 0.5, 1.0),
    "right": (0.5, 0.0, 1.0, 1.0),
    "top": (0.0, 0.0, 1.0, 0.5),
    "bottom": (0.0, 0.5, 1.0, 1.0),
}
"""Left, top, right and bottom edge in fractions of the image, by name."""
GRID = 128  # cells a side of a region as given; it is scaled to every layer's map

Places = Mapping[str, Tensor | None]
"""By rare word: a mask (`GRID`, `GRID`), or None for the whole image."""


def parse_places(regions: Sequence[str], rare_words: Collection[str]) -> Places:
    """Read ``WORD=PLACE``: left, right, top, bottom, everywhere, a box ``0,0,0.5,1``, or the path of a mask image.

    Raises:
        TaraError: for an unknown word or place, a box outside the image, and two regions that overlap.
    """
    known = {word.casefold(): word for word in rare_words}
    places: dict[str, Tensor | None] = {}
    for region in regions:
        word, equals, place = (part.strip() for part in region.partition("="))
        if not equals or not place:
            raise TaraError(f"The region '{region}' is not of the form WORD=PLACE. Write for instance xlo=left.")
        if word.casefold() not in known:
            hint = nearest(word, known)
            raise TaraError(f"The region '{region}' is for '{word}', which is no adapter's rare word.{hint}")
        places[known[word.casefold()]] = None if place == EVERYWHERE else _mask(region, place)
    for (one, mask), (other, second) in combinations(places.items(), 2):
        if mask is not None and second is not None and bool((mask & second).any()):
            raise TaraError(f"The regions of '{one}' and '{other}' overlap. Each cell can belong to one adapter only.")
    return places


def _mask(region: str, place: str) -> Tensor:
    if place not in BOXES and "," not in place and Path(place).is_file():
        grey = read_image(Path(place)).convert("L").resize((GRID, GRID), Image.Resampling.BILINEAR)
        mask = torch.from_numpy(np.array(grey) > 127)
    else:
        left, top, right, bottom = _box(region, place)
        at = (torch.arange(GRID) + 0.5) / GRID
        mask = ((at >= top) & (at < bottom))[:, None] & ((at >= left) & (at < right))[None]
    if not mask.any():
        raise TaraError(f"The region '{region}' is empty. A mask image is white where the concept is to be.")
    return mask


def _box(region: str, place: str) -> tuple[float, float, float, float]:
    if place in BOXES:
        return BOXES[place]
    try:
        left, top, right, bottom = map(float, place.split(","))
    except ValueError:
        names = ", ".join((*BOXES, EVERYWHERE))
        raise TaraError(
            f"The region '{region}' is no known place.{nearest(place, BOXES)} Write {names}, a box such as 0,0,0.5,1 "
            "(left, top, right, bottom as fractions of the image), or the path of a mask image."
        ) from None
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise TaraError(
            f"The region '{region}' is not inside the image. A box is left,top,right,bottom as fractions from 0 to 1, "
            "such as 0,0,0.5,1."
        )
    return left, top, right, bottom
