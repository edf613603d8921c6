"""The content of pages and contact sheets: rows of captioned images, and tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

NUMERIC = "0123456789+-"  # characters with which a number's text can begin


@dataclass(frozen=True, kw_only=True)
class Row:
    """Images side by side, one per column (None: empty), each with an optional caption below."""

    label: str = ""
    images: tuple[Image.Image | None, ...]
    captions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rows of images with a heading per column. On a page, a ``folded`` grid is hidden until its title is clicked."""

    rows: tuple[Row, ...]
    columns: tuple[str, ...] = ()
    title: str = ""
    note: str = ""
    folded: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row.images) <= self.width, f"row {row.label!r} has more images than the {self.width} columns"
        assert self.title or not self.folded, "a folded grid needs a title"

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.columns) or max((len(row.images) for row in self.rows), default=0)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Headings, rows of text, a title and a note.

    On a page, a ``folded`` table is hidden until its title is clicked.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    note: str = ""
    folded: bool = False

    def __post_init__(self) -> None:
        assert self.title or not self.folded, "a folded table needs a title"

    @property
    def numeric(self) -> tuple[bool, ...]:
        """For each column, whether it holds only numbers and is aligned right."""
        columns = zip(*self.rows, strict=True)
        return tuple(all(not text or text[0] in NUMERIC for text in column) for column in columns)


def wrapped(images: Sequence[Image.Image], captions: Sequence[str], *, columns: int = 4, title: str = "") -> Grid:
    """A list of images, each with its caption, as a grid of at most ``columns`` in a row."""
    pairs = list(zip(images, captions, strict=True))
    parts = [pairs[start : start + columns] for start in range(0, len(pairs), columns)]
    rows = [Row(images=tuple(image for image, _ in part), captions=tuple(text for _, text in part)) for part in parts]
    return Grid(rows=tuple(rows), title=title)


def shrunk(image: Image.Image, longest: int) -> Image.Image:
    """The image with no side over ``longest`` pixels; a smaller one keeps its size."""
    small = image.copy()
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS, reducing_gap=None)
    return small
