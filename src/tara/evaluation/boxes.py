"""Boxes around things: how far they overlap, which are doubles, and what they cut out."""

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from tara.evaluation.scores import Box

WHOLE_PICTURE: Box = (0.0, 0.0, 1.0, 1.0)
SAME_THING = 0.6
"""Intersection over union from which two boxes hold one thing, whatever it was taken for."""
PART = 0.8
"""Share of a box inside a surer one of its class from which it holds a part of that, such as a dog's head."""
MARGIN = 0.04
"""Of a box's longer side, left around it in a crop."""
NEUTRAL = (124, 116, 104)
"""The mean of ImageNet's pixels, which encoders see as 0."""


def non_maximum_suppression(boxes: Float[np.ndarray, "boxes 5"], kinds: Int[np.ndarray, " boxes"]) -> list[int]:
    """The boxes without doubles, the surest first.

    Args:
        boxes: left, top, right, bottom, confidence.
        kinds: what each was taken for.

    Returns:
        the numbers of those that stay.
    """
    kept: list[int] = []
    for number in np.argsort(-boxes[:, 4], kind="stable").tolist():
        shared = [_intersection(boxes[number], boxes[other]) for other in kept]
        if not any(
            both > SAME_THING * (_area(boxes[number]) + _area(boxes[other]) - both)
            or (kinds[number] == kinds[other] and both > PART * _area(boxes[number]))
            for other, both in zip(kept, shared, strict=True)
        ):
            kept.append(number)
    return kept


def crop(image: Image.Image, box: Box) -> Image.Image:
    """What a box holds, with a small margin, made square with a neutral colour.

    Encoders cut the middle square out of what they get, so a long crop would lose its ends, and a wider one would show
    the neighbours.
    """
    left, top, right, bottom = (part * side for part, side in zip(box, image.size * 2, strict=True))
    margin = MARGIN * max(right - left, bottom - top)
    cut = image.crop(
        (
            max(0, round(left - margin)),
            max(0, round(top - margin)),
            min(image.width, max(round(right + margin), round(left) + 1)),
            min(image.height, max(round(bottom + margin), round(top) + 1)),
        )
    )
    square = Image.new("RGB", (max(cut.size), max(cut.size)), NEUTRAL)
    square.paste(cut, ((square.width - cut.width) // 2, (square.height - cut.height) // 2))
    return square


def _area(box: Float[np.ndarray, " 5"]) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _intersection(one: Float[np.ndarray, " 5"], other: Float[np.ndarray, " 5"]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return float(max(0.0, width) * max(0.0, height))
