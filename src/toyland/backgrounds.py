"""Painters of backgrounds, each with details that a random generator chooses."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from toyland.drawing import Pen, box, oval
from toyland.world import Rgb


def _jitter(rng: np.random.Generator, color: Rgb, amount: int = 12) -> Rgb:
    red, green, blue = (
        int(np.clip(c + shift, 0, 255)) for c, shift in zip(color, rng.integers(-amount, amount + 1, 3), strict=True)
    )
    return red, green, blue


def _ground(pen: Pen, rng: np.random.Generator, sky: Rgb, ground: Rgb) -> float:
    """Sky over ground; returns the height of the horizon."""
    horizon = float(rng.uniform(0.52, 0.62))
    pen.fill(box(0, 0, 1, horizon), _jitter(rng, sky))
    pen.fill(box(0, horizon, 1, 1), _jitter(rng, ground))
    return horizon


def _paint_beach(pen: Pen, rng: np.random.Generator) -> None:
    horizon = _ground(pen, rng, (150, 208, 245), (238, 214, 160))
    pen.fill(box(0, horizon - 0.14, 1, horizon + 0.02), _jitter(rng, (36, 130, 190)))
    pen.fill(oval(float(rng.uniform(0.1, 0.9)), 0.12, 0.08, 0.08), (255, 236, 130))


def _paint_forest(pen: Pen, rng: np.random.Generator) -> None:
    horizon = _ground(pen, rng, (42, 92, 52), (66, 74, 36))
    for x in np.linspace(0.05, 0.95, 5) + rng.uniform(-0.06, 0.06, 5):
        pen.fill(box(x - 0.03, 0, x + 0.03, horizon + 0.03), (74, 50, 32))
    for x in np.linspace(0, 1, 6) + rng.uniform(-0.05, 0.05, 6):
        pen.fill(oval(float(x), 0.04, 0.14, float(rng.uniform(0.1, 0.18))), _jitter(rng, (28, 112, 48)))


def _paint_snow(pen: Pen, rng: np.random.Generator) -> None:
    horizon = _ground(pen, rng, (186, 202, 222), (244, 248, 252))
    for x in rng.uniform(0.05, 0.95, 2):
        pen.fill([(x - 0.3, horizon), (x, horizon - 0.3), (x + 0.3, horizon)], (134, 152, 180))
        pen.fill([(x - 0.1, horizon - 0.2), (x, horizon - 0.3), (x + 0.1, horizon - 0.2)], (250, 252, 255))
    for x, y in rng.uniform(0, 1, (14, 2)):
        pen.fill(oval(float(x), float(y) * 0.5, 0.014, 0.014, 8), (255, 255, 255))


def _paint_street(pen: Pen, rng: np.random.Generator) -> None:
    horizon = _ground(pen, rng, (196, 200, 206), (92, 94, 100))
    edges = np.linspace(0, 1, 5) + np.array([0, *rng.uniform(-0.05, 0.05, 3), 0])
    for left, right in pairwise(edges):
        top = float(rng.uniform(0.05, 0.3))
        pen.fill(box(left, top, right - 0.01, horizon), _jitter(rng, (140, 112, 104), 20))
        for x in np.arange(left + 0.04, right - 0.08, 0.11):
            for y in np.arange(top + 0.06, horizon - 0.08, 0.16):
                pen.fill(box(x, y, x + 0.055, y + 0.085), (248, 226, 150))
    for x in (0.05, 0.38, 0.71):
        pen.fill(box(x, 0.8, x + 0.2, 0.83), (232, 232, 226))


def _paint_room(pen: Pen, rng: np.random.Generator) -> None:
    horizon = _ground(pen, rng, (236, 208, 186), (150, 98, 60))
    pen.fill(box(0, horizon - 0.03, 1, horizon), (250, 244, 236))
    for y in (horizon + 0.12, horizon + 0.25):
        pen.fill(box(0, y, 1, y + 0.012), (118, 74, 44))
    x = float(rng.uniform(0.1, 0.6))
    pen.fill(box(x, 0.08, x + 0.3, 0.34), (250, 244, 236))
    pen.fill(box(x + 0.03, 0.11, x + 0.27, 0.31), (128, 178, 214))
    pen.fill(box(x + 0.14, 0.11, x + 0.16, 0.31), (250, 244, 236))


def _paint_meadow(pen: Pen, rng: np.random.Generator) -> None:
    horizon = _ground(pen, rng, (120, 190, 250), (104, 182, 72))
    pen.fill(oval(float(rng.uniform(0.1, 0.9)), horizon + 0.1, 0.5, 0.22), _jitter(rng, (90, 168, 66)))
    pen.fill(box(0, horizon + 0.1, 1, 1), _jitter(rng, (112, 188, 76), 6))
    x, y = float(rng.uniform(0.1, 0.8)), float(rng.uniform(0.08, 0.18))
    for dx, r in ((0, 0.06), (0.08, 0.08), (0.17, 0.06)):
        pen.fill(oval(x + dx, y, r, r * 0.8), (252, 252, 255))
    for x, y in rng.uniform(0, 1, (10, 2)):
        pen.fill(oval(float(x), horizon + 0.12 + 0.3 * float(y), 0.016, 0.016, 8), (255, 240, 110))


def _paint_night(pen: Pen, rng: np.random.Generator) -> None:
    horizon = _ground(pen, rng, (18, 20, 56), (38, 42, 70))
    for x, y in rng.uniform(0, 1, (18, 2)):
        pen.fill(oval(float(x), float(y) * horizon, 0.012, 0.012, 8), (250, 246, 210))
    x = float(rng.uniform(0.1, 0.9))
    pen.fill(oval(x, 0.14, 0.09, 0.09), (250, 244, 200))
    pen.fill(oval(x + 0.045, 0.12, 0.08, 0.08), (20, 22, 58))


BACKGROUND_PAINTERS: dict[str, Callable[[Pen, np.random.Generator], None]] = {
    "beach": _paint_beach,
    "forest": _paint_forest,
    "snow": _paint_snow,
    "street": _paint_street,
    "room": _paint_room,
    "meadow": _paint_meadow,
    "night": _paint_night,
}
