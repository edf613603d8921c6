"""Scenes to pixels: flat shapes drawn at four times the size and averaged down.

The same scene always gives the same picture.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from toyland.backgrounds import BACKGROUND_PAINTERS
from toyland.drawing import DARK, Pen
from toyland.shapes import ACCESSORY_PARTS, SHAPES, pattern_marks
from toyland.world import Scene, Thing

SIZE = 64
"""Width and height of a picture in pixels."""
OVERSAMPLING = 4
OUTLINE = 0.014
"""Width of the dark line around every part, as a fraction of the picture."""


def render(scene: Scene, size: int = SIZE) -> Image.Image:
    """Draw a scene as an RGB picture of `size` x `size` pixels."""
    canvas = Image.new("RGB", (size * OVERSAMPLING, size * OVERSAMPLING))
    BACKGROUND_PAINTERS[scene.background](Pen(canvas), np.random.default_rng(scene.seed))
    for thing in sorted(scene.things, key=lambda thing: thing.y):
        _draw_thing(canvas, thing)
    return _apply_style(canvas.resize((size, size), Image.Resampling.BOX), scene.style)


def _draw_thing(canvas: Image.Image, thing: Thing) -> None:
    shape, look = SHAPES[thing.kind], thing.look
    pen = Pen(canvas, thing.x, thing.y, thing.size)
    for polygon in (*shape.behind, *shape.body, *shape.front):
        pen.outline(polygon, DARK, OUTLINE)
    for polygon in shape.behind:
        pen.fill(polygon, look.second)
    for polygon in shape.body:
        pen.fill(polygon, look.body)
    _draw_pattern(canvas, thing)
    for polygon in shape.front:
        pen.outline(polygon, DARK, OUTLINE * 0.5)
        pen.fill(polygon, look.second)
    for polygon, color in shape.details:
        pen.fill(polygon, color)
    x, y = shape.top
    accessory = Pen(canvas, thing.x + x * thing.size, thing.y + y * thing.size, thing.size)
    parts = ACCESSORY_PARTS[look.accessory]
    for polygon in parts:
        accessory.outline(polygon, DARK, OUTLINE)
    for polygon in parts:
        accessory.fill(polygon, look.third)


def _draw_pattern(canvas: Image.Image, thing: Thing) -> None:
    """Lay the second colour over the body's parts only."""
    marks = pattern_marks(thing.look.pattern)
    if not marks:
        return
    body, pattern = Image.new("L", canvas.size), Image.new("L", canvas.size)
    for mask, polygons in ((body, SHAPES[thing.kind].body), (pattern, marks)):
        pen = Pen(mask, thing.x, thing.y, thing.size)
        for polygon in polygons:
            pen.fill(polygon, 255)
    reach = 1.15 * thing.size
    corners = (thing.x - reach, thing.y - reach, thing.x + reach, thing.y + reach)
    left, top, right, bottom = (round(float(np.clip(c, 0, 1)) * canvas.width) for c in corners)
    crop = (left, top, right, bottom)
    both = Image.fromarray(np.minimum(np.asarray(body.crop(crop)), np.asarray(pattern.crop(crop))))
    canvas.paste(thing.look.second, crop, both)


def _apply_style(picture: Image.Image, style: str) -> Image.Image:
    """Change the whole picture as a style does; `none` leaves it."""
    if style == "pixel":
        small = picture.resize((picture.width // 4, picture.height // 4), Image.Resampling.BOX)
        return small.resize(picture.size, Image.Resampling.NEAREST)
    gray = ImageOps.grayscale(picture)
    if style == "pencil":
        edges = np.abs(np.gradient(np.asarray(gray, np.float32))).sum(0)
        return Image.fromarray(np.clip(246 - 3.0 * edges, 40, 255).astype(np.uint8)).convert("RGB")
    if style == "sepia":
        return ImageOps.colorize(gray, (44, 26, 12), (255, 236, 198), mid=(164, 122, 78))
    if style == "blueprint":
        return ImageOps.colorize(gray, (238, 246, 255), (10, 40, 120), mid=(70, 120, 200))
    if style == "scanline":
        lines = np.asarray(picture, np.float32) * np.where(np.arange(picture.height) % 4 < 2, 1.0, 0.45)[:, None, None]
        return Image.fromarray((lines * (0.75, 1.0, 0.8)).astype(np.uint8))
    return picture
