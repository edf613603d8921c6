"""What things are made of: polygons of classes, accessories and patterns, one unit being half a thing's height."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toyland.drawing import DARK, LIGHT, Point, Polygon, box, oval
from toyland.world import Rgb


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A class: parts in the body's colour (the pattern lies on them), in the second colour, and fixed details."""

    body: Sequence[Polygon]
    behind: Sequence[Polygon] = ()
    """In the second colour, under the body."""
    front: Sequence[Polygon] = ()
    """In the second colour, over body and pattern."""
    details: Sequence[tuple[Polygon, Rgb]]
    top: Point
    """Where an accessory sits."""


def _eyes(x: float, y: float, gap: float, r: float = 0.09) -> list[tuple[Polygon, Rgb]]:
    return [(oval(x + side * gap, y, r, r * 1.2, 12), DARK) for side in (-1, 1)]


SHAPES: dict[str, Shape] = {
    "cat": Shape(
        behind=[
            [(-0.62, -0.98), (-0.06, -0.62), (-0.58, -0.2)],
            [(0.62, -0.98), (0.06, -0.62), (0.58, -0.2)],
            [(0.3, 0.95), (0.3, 0.7), (0.72, 0.62), (0.74, 0.1), (0.98, 0.1), (0.98, 0.75), (0.8, 0.95)],
        ],
        body=[oval(0, 0.5, 0.52, 0.5), oval(0, -0.25, 0.6, 0.46)],
        details=[*_eyes(0, -0.28, 0.25, 0.1), ([(-0.08, -0.08), (0.08, -0.08), (0, 0.02)], (235, 130, 140))],
        top=(0, -0.68),
    ),
    "dog": Shape(
        body=[oval(0, 0.52, 0.55, 0.48), oval(0, -0.35, 0.5, 0.5)],
        front=[oval(-0.58, -0.28, 0.2, 0.5), oval(0.58, -0.28, 0.2, 0.5), oval(0, -0.1, 0.27, 0.23)],
        details=[*_eyes(0, -0.48, 0.2), (oval(0, -0.2, 0.12, 0.09, 12), DARK)],
        top=(0, -0.82),
    ),
    "rabbit": Shape(
        behind=[oval(-0.27, -0.68, 0.16, 0.5), oval(0.27, -0.68, 0.16, 0.5), oval(0.6, 0.72, 0.2, 0.2)],
        body=[oval(0, 0.52, 0.55, 0.48), oval(0, -0.12, 0.42, 0.4)],
        details=[*_eyes(0, -0.2, 0.18, 0.08), (box(-0.09, 0.02, 0.09, 0.2), (250, 250, 250))],
        top=(0, -0.48),
    ),
    "duck": Shape(
        behind=[[(0.55, 0.3), (1.05, -0.12), (0.9, 0.55)]],
        body=[oval(0.12, 0.45, 0.82, 0.48), oval(-0.42, -0.35, 0.42, 0.42)],
        front=[oval(0.3, 0.42, 0.4, 0.25)],
        details=[
            ([(-0.76, -0.48), (-1.12, -0.22), (-0.72, -0.12)], (245, 150, 20)),
            (oval(-0.5, -0.45, 0.09, 0.11, 12), DARK),
        ],
        top=(-0.42, -0.74),
    ),
    "robot": Shape(
        behind=[
            box(-0.92, -0.05, -0.5, 0.18),
            box(0.5, -0.05, 0.92, 0.18),
            box(-0.92, 0.1, -0.7, 0.55),
            box(0.7, 0.1, 0.92, 0.55),
            box(-0.42, 0.6, -0.12, 1.0),
            box(0.12, 0.6, 0.42, 1.0),
        ],
        body=[box(-0.55, -0.12, 0.55, 0.68), box(-0.42, -0.82, 0.42, -0.2)],
        details=[
            (box(-0.3, -0.68, -0.06, -0.44), LIGHT),
            (box(0.06, -0.68, 0.3, -0.44), LIGHT),
            (box(-0.22, -0.36, 0.22, -0.28), DARK),
        ],
        top=(0, -0.82),
    ),
    "car": Shape(
        behind=[[(-0.62, 0.12), (-0.38, -0.45), (0.38, -0.45), (0.7, 0.12)]],
        body=[[(-1.02, 0.08), (0.98, 0.08), (1.08, 0.25), (1.08, 0.62), (-1.08, 0.62), (-1.08, 0.2)]],
        details=[
            ([(-0.42, 0.06), (-0.27, -0.31), (-0.05, -0.31), (-0.05, 0.06)], LIGHT),
            ([(0.07, 0.06), (0.07, -0.31), (0.28, -0.31), (0.46, 0.06)], LIGHT),
            (oval(-0.58, 0.66, 0.27, 0.27), DARK),
            (oval(0.58, 0.66, 0.27, 0.27), DARK),
            (oval(-0.58, 0.66, 0.12, 0.12, 12), (190, 190, 195)),
            (oval(0.58, 0.66, 0.12, 0.12, 12), (190, 190, 195)),
        ],
        top=(0, -0.45),
    ),
    "boat": Shape(
        behind=[[(0.1, -0.88), (0.1, 0.2), (0.92, 0.2)], [(-0.06, -0.6), (-0.06, 0.2), (-0.66, 0.2)]],
        body=[[(-1.05, 0.32), (1.05, 0.32), (0.68, 0.92), (-0.68, 0.92)]],
        details=[(box(-0.05, -0.9, 0.09, 0.34), (92, 60, 36))],
        top=(0.02, -0.88),
    ),
    "mug": Shape(
        behind=[
            [
                (0.45, -0.35),
                (0.98, -0.35),
                (0.98, 0.6),
                (0.45, 0.6),
                (0.45, 0.36),
                (0.74, 0.36),
                (0.74, -0.11),
                (0.45, -0.11),
            ]
        ],
        body=[box(-0.68, -0.55, 0.52, 0.88)],
        front=[oval(-0.08, -0.55, 0.6, 0.18)],
        details=[(oval(-0.08, -0.55, 0.44, 0.1), (62, 36, 22))],
        top=(-0.08, -0.62),
    ),
    "house": Shape(
        body=[box(-0.75, -0.12, 0.75, 0.95)],
        front=[[(-0.98, -0.08), (0, -0.88), (0.98, -0.08)]],
        details=[
            (box(-0.2, 0.4, 0.2, 0.95), (96, 58, 34)),
            (box(-0.6, 0.1, -0.3, 0.38), LIGHT),
            (box(0.3, 0.1, 0.6, 0.38), LIGHT),
        ],
        top=(0, -0.8),
    ),
    "tower": Shape(
        body=[box(-0.4, -0.5, 0.4, 1.0)],
        front=[
            [
                (-0.62, -0.42),
                (-0.62, -0.95),
                (-0.34, -0.95),
                (-0.34, -0.74),
                (-0.14, -0.74),
                (-0.14, -0.95),
                (0.14, -0.95),
                (0.14, -0.74),
                (0.34, -0.74),
                (0.34, -0.95),
                (0.62, -0.95),
                (0.62, -0.42),
            ],
        ],
        details=[
            (oval(0, -0.2, 0.11, 0.16, 12), DARK),
            ([(-0.17, 1.0), (-0.17, 0.66), (0, 0.55), (0.17, 0.66), (0.17, 1.0)], DARK),
        ],
        top=(0, -0.88),
    ),
}

ACCESSORY_PARTS: dict[str, list[Polygon]] = {
    "none": [],
    "hat": [box(-0.5, -0.14, 0.5, 0.06), box(-0.29, -0.62, 0.29, -0.1)],
    "crown": [[(-0.44, 0.06), (-0.5, -0.55), (-0.22, -0.22), (0, -0.6), (0.22, -0.22), (0.5, -0.55), (0.44, 0.06)]],
    "flag": [box(-0.09, -0.72, 0.03, 0.1), [(0.0, -0.72), (0.66, -0.5), (0.0, -0.24)]],
    "bow": [
        [(-0.52, -0.36), (0, -0.1), (-0.52, 0.16)],
        [(0.52, -0.36), (0, -0.1), (0.52, 0.16)],
        oval(0, -0.1, 0.15, 0.15, 12),
    ],
}


def pattern_marks(pattern: str) -> list[Polygon]:
    """What a pattern lays over the body, in the thing's own frame."""
    if pattern == "stripes":
        return [box(x - 0.09, -1, x + 0.09, 1) for x in (-0.9, -0.54, -0.18, 0.18, 0.54, 0.9)]
    if pattern == "spots":
        return [
            oval(x + 0.22 * (row % 2), y, 0.13, 0.13, 12)
            for row, y in enumerate((-0.75, -0.35, 0.05, 0.45, 0.82))
            for x in (-1.1, -0.66, -0.22, 0.22, 0.66, 1.1)
        ]
    if pattern == "belt":
        return [box(-1.2, 0.26, 1.2, 0.6)]
    return []
