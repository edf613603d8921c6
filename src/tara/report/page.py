"""Pictures with their words: one grid, drawn as a contact sheet (PNG) or built into a page (HTML)."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import jinja2
from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

BACKGROUND, INK, FAINT = "#ffffff", "#1c1f23", "#68707a"
MARGIN, GAP = 20, 10
PAGE = "index.html"  # what a command leaves for people to look at
FIGURE = "0123456789+-"  # what a figure begins with
LARGEST_CELL = 416  # twice the 208 pixels at which a page shows a picture of a grid, for dense screens


@dataclass(frozen=True, kw_only=True)
class Row:
    """Pictures side by side: one per column, None where there is none, with a caption under each if there are any."""

    label: str = ""
    images: tuple[Image.Image | None, ...]
    captions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rows of pictures with a heading over each column and lines of text (figures) under it.

    A page shows a ``folded`` grid's title alone until a reader opens it.
    """

    rows: tuple[Row, ...]
    columns: tuple[str, ...] = ()
    footers: tuple[tuple[str, ...], ...] = ()
    title: str = ""
    note: str = ""
    folded: bool = False

    def __post_init__(self) -> None:
        width = self.width
        for row in self.rows:
            assert len(row.images) <= width, f"row {row.label!r} has more pictures than the {width} columns"
        assert not self.footers or len(self.footers) == width, "one footer per column"
        assert self.title or not self.folded, "a folded grid needs a title to be opened by"

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.columns) or max((len(row.images) for row in self.rows), default=0)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One picture as wide as the page, such as a curve."""

    image: Image.Image
    title: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Figures under the pictures: headings, rows of ready text, a title and a note."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    note: str = ""

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Which columns hold figures alone, and so are set flush right."""
        columns = zip(*self.rows, strict=True)
        return tuple(all(not text or text[0] in FIGURE for text in column) for column in columns)


def wrapped(images: Sequence[Image.Image], captions: Sequence[str], *, columns: int = 4, title: str = "") -> Grid:
    """A plain list of pictures, each with its caption, as a grid of at most `columns` in a row."""
    pairs = list(zip(images, captions, strict=True))
    rows = [pairs[start : start + columns] for start in range(0, len(pairs), columns)]
    return Grid(
        rows=tuple(Row(images=tuple(i for i, _ in row), captions=tuple(text for _, text in row)) for row in rows),
        title=title,
    )


def contact_sheet(grid: Grid, *, cell: int | None = None) -> Image.Image:
    """Draw the grid as one picture.

    Args:
        grid: rows, headings, footers, title and note.
        cell: longest side of a picture on the sheet in pixels; None takes the pictures' own, kept within 176 to 384.

    Returns:
        an RGB picture.
    """
    frame = _frame(grid, cell)
    large, small = frame.large, frame.small
    bands = [_text_band([grid.title], frame.title, INK, frame.inner)] if grid.title else []
    if grid.columns:
        bands.append(_column_band(frame, [(heading,) for heading in grid.columns], large, INK))
    for row in grid.rows:
        bands.append(_picture_band(frame, row, grid.width))
        if row.captions:
            bands.append(_column_band(frame, [(caption,) for caption in row.captions], small, FAINT))
    if grid.footers:
        bands.append(_column_band(frame, grid.footers, small, FAINT))
    if grid.note:
        bands.append(_text_band([grid.note], small, FAINT, frame.inner))
    height = sum(band.height + GAP for band in bands) - GAP + 2 * MARGIN
    sheet = Image.new("RGB", (frame.inner + 2 * MARGIN, height), BACKGROUND)
    y = MARGIN
    for band in bands:
        sheet.paste(band, (MARGIN, y))
        y += band.height + GAP
    return sheet


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """The measures that all bands of a sheet share, in pixels."""

    cell: tuple[int, int]
    labels: int
    inner: int
    title: Font
    large: Font
    small: Font

    def column_left(self, column: int) -> int:
        return self.labels + column * (self.cell[0] + GAP)


def _frame(grid: Grid, cell: int | None) -> _Frame:
    images = [image for row in grid.rows for image in row.images if image is not None]
    side = cell or min(384, max(176, max((max(image.size) for image in images), default=176)))
    large, small = _font(max(14, side // 12)), _font(max(13, side // 15))
    widths = [side * image.width / max(image.size) for image in images]
    heights = [side * image.height / max(image.size) for image in images]
    size = round(max(widths, default=side)), round(max(heights, default=side))
    widest = max((_text_width(large, row.label) for row in grid.rows), default=0)
    labels = min(widest, round(1.5 * side)) + 2 * GAP if widest else 0
    inner = labels + grid.width * (size[0] + GAP) - GAP
    title = _font(max(18, side // 9))
    return _Frame(cell=size, labels=labels, inner=max(inner, 1), title=title, large=large, small=small)


def _picture_band(frame: _Frame, row: Row, width: int) -> Image.Image:
    band = Image.new("RGB", (frame.inner, frame.cell[1]), BACKGROUND)
    if row.label:
        label = _text_band([row.label], frame.large, INK, frame.labels - 2 * GAP)
        band.paste(label, (0, max(0, (band.height - label.height) // 2)))
    for column in range(width):
        image = row.images[column] if column < len(row.images) else None
        left = frame.column_left(column)
        if image is None:
            continue
        scale = min(frame.cell[0] / image.width, frame.cell[1] / image.height)
        size = round(image.width * scale), round(image.height * scale)
        fitted = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        band.paste(fitted, (left + (frame.cell[0] - size[0]) // 2, (frame.cell[1] - size[1]) // 2))
    return band


def _column_band(frame: _Frame, texts: Sequence[Sequence[str]], font: Font, ink: str) -> Image.Image:
    columns = [_text_band(text, font, ink, frame.cell[0], centred=True) for text in texts]
    band = Image.new("RGB", (frame.inner, max(column.height for column in columns)), BACKGROUND)
    for index, column in enumerate(columns):
        band.paste(column, (frame.column_left(index), 0))
    return band


def _text_band(texts: Sequence[str], font: Font, ink: str, width: int, *, centred: bool = False) -> Image.Image:
    lines = [line for text in texts for line in _fold(text, font, width)]
    step = _line_height(font)
    band = Image.new("RGB", (max(width, 1), max(len(lines), 1) * step), BACKGROUND)
    draw = ImageDraw.Draw(band)
    for index, line in enumerate(lines):
        left = (width - _text_width(font, line)) // 2 if centred else 0
        draw.text((max(left, 0), index * step), line, font=font, fill=ink)
    return band


def _fold(text: str, font: Font, width: int) -> list[str]:
    """Break a text into lines of at most `width` pixels; a word that is wider alone is cut with an ellipsis."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and _text_width(font, joined) <= width:
            lines[-1] = joined
            continue
        while len(word) > 2 and _text_width(font, word) > width:
            word = word[:-2] + "\N{HORIZONTAL ELLIPSIS}"
        lines.append(word)
    return lines


@cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _text_width(font: Font, text: str) -> int:
    return math.ceil(font.getlength(text))


def _line_height(font: Font) -> int:
    _, top, _, bottom = font.getbbox("Ágjpy|")
    return round((bottom - top) * 1.2)


def page(
    *,
    title: str,
    lead: str = "",
    grids: Sequence[Grid] = (),
    figures: Sequence[Figure] = (),
    tables: Sequence[Table] = (),
    command: str = "",
) -> str:
    """Build a page that needs no other file: pictures first, the numbers under them, the command that made them last.

    Every text is escaped, and the page itself forbids scripts and addresses; pictures are embedded as PNG, those of
    grids at no more than twice the size at which they are shown.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["embedded"] = embedded
    source = (resources.files("tara.report") / "templates" / "page.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        title=title, lead=lead, grids=grids, figures=figures, tables=tables, command=command, shrunk=shrunk
    )


def shrunk(image: Image.Image, longest: int = LARGEST_CELL) -> Image.Image:
    """The picture with no side over ``longest`` pixels; a smaller one stays as it is."""
    if max(image.size) <= longest:
        return image
    scale = longest / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def png_bytes(image: Image.Image) -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def embedded(image: Image.Image) -> str:
    """The picture as a `data:` address, for an `img` element."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode("ascii")
