"""A grid as one image, the contact sheet."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

from tara.report.grid import Grid

BACKGROUND, INK = "#ffffff", "#1c1f23"
MARGIN, GAP = 20, 10
SMALLEST, LARGEST = 176, 384  # limits of the default longest side of an image in pixels
Block = tuple[int, Image.Image]  # text or an image, and its distance from the left


def contact_sheet(grid: Grid, *, side: int | None = None) -> Image.Image:
    """The grid with its title, headings, labels and captions, but without its note, as one RGB image.

    Args:
        grid: what to show.
        side: longest side of every image in pixels; None means that of the largest image, clamped to 176..384.
    """
    images = [image for row in grid.rows for image in row.images if image is not None]
    side = side or min(LARGEST, max((SMALLEST, *(max(image.size) for image in images))))
    width = max((round(side * image.width / max(image.size)) for image in images), default=side)
    size = max(13, side // 13)
    labels = max((round(ImageFont.load_default(size).getlength(row.label)) for row in grid.rows), default=0)
    labels = min(labels + 2 * GAP, round(1.5 * side)) if labels else 0
    lefts = [labels + column * (width + GAP) for column in range(grid.width)]
    inner = labels + max(1, grid.width) * (width + GAP) - GAP

    def texts(columns: Sequence[str]) -> list[Block]:
        return [(x, _text(text, width, size, centred=True)) for x, text in zip(lefts, columns, strict=False)]

    bands = [[(0, _text(grid.title, inner, size))], texts(grid.columns)]
    for row in grid.rows:
        band: list[Block] = [(0, _text(row.label, labels - 2 * GAP, size))]
        for x, image in zip(lefts, row.images, strict=False):
            if image is not None:
                fitted = ImageOps.contain(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
                band.append((x + (width - fitted.width) // 2, fitted))
        bands += [band, texts(row.captions)]
    heights = [max((block.height for _, block in band), default=0) for band in bands]
    total = sum(height + GAP for height in heights if height) - GAP
    sheet = Image.new("RGB", (inner + 2 * MARGIN, total + 2 * MARGIN), BACKGROUND)
    top = MARGIN
    for band, height in zip(bands, heights, strict=True):
        for x, block in band:
            sheet.paste(block, (MARGIN + x, top + (height - block.height) // 2))
        top += height + GAP if height else 0
    return sheet


def _text(text: str, width: int, size: int, *, centred: bool = False) -> Image.Image:
    """A text wrapped to about ``width`` pixels; a line that is still wider is cut off."""
    font, step = ImageFont.load_default(size), round(1.3 * size)
    lines: list[str] = []
    for part in text.splitlines():
        lines += textwrap.wrap(part, max(1, int(width * len(part) / max(1, font.getlength(part)))))
    block = Image.new("RGB", (max(width, 1), step * len(lines)), BACKGROUND)
    for number, line in enumerate(lines):
        x = max(0, (width - font.getlength(line)) / 2) if centred else 0
        ImageDraw.Draw(block).text((x, number * step), line, font=font, fill=INK)
    return block
