"""A pen for polygons in a frame of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from toyland.world import Rgb

Point = tuple[float, float]
Polygon = list[Point]
DARK: Rgb = (28, 26, 30)
LIGHT: Rgb = (225, 240, 250)


class Pen:
    """Draws polygons of a local frame: in units of `scale` around (`x`, `y`), these in fractions of the canvas."""

    def __init__(self, canvas: Image.Image, x: float = 0.0, y: float = 0.0, scale: float = 1.0) -> None:
        self.width = canvas.width
        self.draw = ImageDraw.Draw(canvas)
        self.x, self.y, self.scale = x, y, scale

    def points(self, polygon: Sequence[Point]) -> list[Point]:
        return [
            ((self.x + px * self.scale) * self.width, (self.y + py * self.scale) * self.width) for px, py in polygon
        ]

    def fill(self, polygon: Sequence[Point], color: Rgb | int) -> None:
        self.draw.polygon(self.points(polygon), fill=color)

    def outline(self, polygon: Sequence[Point], color: Rgb, thickness: float) -> None:
        points = self.points(polygon)
        self.draw.line([*points, points[0], points[1]], fill=color, width=round(thickness * self.width), joint="curve")


def box(left: float, top: float, right: float, bottom: float) -> Polygon:
    """An upright rectangle."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def oval(x: float, y: float, rx: float, ry: float, corners: int = 24) -> Polygon:
    """An ellipse with radii `rx` and `ry`, as a polygon."""
    angles = np.arange(corners) * (2 * np.pi / corners)
    return [(x + rx * float(np.cos(a)), y + ry * float(np.sin(a))) for a in angles]
