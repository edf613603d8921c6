"""An evaluation as a page: pictures with what was found in them, the figures under them, the command last."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from PIL import Image, ImageDraw

from tara.evaluation.figures import ABSENT, Figures, Scored, by_part, by_series, confusion, differences, figures, shots
from tara.evaluation.results import RunInfo
from tara.evaluation.statistics import format_ci
from tara.report.page import Grid, Row, Table, page, shrunk, wrapped
from tara.report.plots import COLOURS
from tara.storage.images import read_image

SIDE = 320
"""Of a picture on the page, in pixels at most; the page holds its pictures itself."""
MOST_ROWS = 24
COLUMNS = 4
FRAMES = ("blue", "orange", "green", "purple", "ochre", "grey")
"""What people call the colours of `tara.report.plots.COLOURS`."""
INTERVALS = "Mean and 95 % interval: a bootstrap over groups of subjects, or over pictures where there is one group."
MEANINGS = {
    "success": "all subjects of the prompt present, each like itself",
    "presence": "share of the subjects that are there at all",
    "identity": "likeness of those that are there to their own photos",
    "identity_absent_zero": "the same with 0 for those that are not",
    "leakage": "how much more one is like another subject of the prompt than like itself",
    "identity_clip_i": "identity by CLIP",
    "identity_absent_zero_clip_i": "identity_absent_zero by CLIP",
    "leakage_clip_i": "leakage by CLIP",
    "clip_t": "picture and prompt, class words in place of rare words",
    "plain_clip_t": "picture and prompt as it stands",
    "plain_clip_i": "whole picture and all photos of its subjects, by CLIP",
    "plain_dino": "the same by DINO",
    "background": "the background that the prompt names",
}


def evaluation_page(scored: Sequence[Scored], how: RunInfo) -> str:
    """The page as HTML: what was scored, and how the figures came about."""
    names = list(by_series(scored))
    lead = f"{len(scored)} pictures of {len(how.thresholds)} subjects, scored subject by subject."
    tables = [
        _figures_table(scored),
        *([_differences_table(scored)] if len(names) > 1 else []),
        *(_confusion_table(name, some) for name, some in by_series(scored).items()),
        _subjects_table(how),
        Table(headings=("for", "model"), rows=tuple(how.models.items()), title="What looked"),
    ]
    return page(
        title=f"Evaluation: {', '.join(names)}",
        lead=lead,
        grids=[_grid(scored)],
        tables=tables,
        command=how.command,
    )


def _grid(scored: Sequence[Scored]) -> Grid:
    """Series side by side, a row for each prompt and seed; a single series goes on from row to row."""
    series = by_series(scored)
    if len(series) == 1:
        shown = scored[: MOST_ROWS * COLUMNS]
        captions = [f"{_place(one)}: {_caption(one)}" for one in shown]
        grid = wrapped([_marked(one) for one in shown], captions, columns=COLUMNS, title="Pictures")
        return replace(grid, note=_note(scored, len(shown), len(scored), "pictures"))
    cells = [dict(shots(some)) for some in series.values()]
    asked = list(dict.fromkeys(shot for of in cells for shot in of))
    rows = tuple(_row([of.get(shot) for of in cells]) for shot in asked[:MOST_ROWS])
    note = _note(scored, len(rows), len(asked), "prompts and seeds")
    return Grid(rows=rows, columns=tuple(series), title="Pictures", note=note)


def _note(scored: Sequence[Scored], shown: int, there: int, what: str) -> str:
    most = max(len(one.picture.subjects) for one in scored)
    frames = f"Frames, in the order of a prompt's subjects: {', '.join(FRAMES[:most])}."
    return f"{frames} The first {shown} of {there} {what}." if shown < there else frames


def _row(cells: Sequence[Scored | None]) -> Row:
    return Row(
        label=next(_place(cell) for cell in cells if cell),
        images=tuple(_marked(cell) if cell else None for cell in cells),
        captions=tuple(_caption(cell) if cell else "" for cell in cells),
    )


def _place(one: Scored) -> str:
    seed = "" if one.picture.seed is None else f", seed\N{NO-BREAK SPACE}{one.picture.seed}"
    return f"{one.picture.prompt}{seed}"


def _caption(one: Scored) -> str:
    """What came of each subject, for instance ``xlo dog 0.81 · szn cat absent``."""
    measure = one.score.measures[0]
    parts: list[str] = []
    for subject, score in zip(one.picture.subjects, one.score.subjects, strict=True):
        told = f"{score.identity[measure]:.2f}{'' if score.right else ', not itself'}" if score.identity else ABSENT
        parts.append(f"{subject.name} {told}")
    return " · ".join(parts)


def _marked(one: Scored) -> Image.Image:
    """The picture at the page's size, with a frame around every subject that was found in it."""
    image = shrunk(read_image(one.picture.path), SIDE)
    draw, last = ImageDraw.Draw(image), (image.width - 1, image.height - 1)
    for number, subject in enumerate(one.score.subjects):
        if subject.box is not None:
            corners = [round(min(max(0.0, part), 1.0) * side) for part, side in zip(subject.box, last * 2, strict=True)]
            draw.rectangle(corners, outline=COLOURS[number % len(COLOURS)], width=max(1, max(image.size) // 100))
    return image


def _figures_table(scored: Sequence[Scored]) -> Table:
    rows = [
        (name, part, str(len(some)), figures(some))
        for name, series in by_series(scored).items()
        for part, some in by_part(series).items()
    ]
    shown = _measured([figure for *_, figure in rows])
    return Table(
        headings=("series", "", "pictures", *shown),
        rows=tuple((name, part, count, *_cells(found, shown)) for name, part, count, found in rows),
        title="Figures",
        note=f"{INTERVALS} {_meanings(shown)}",
    )


def _differences_table(scored: Sequence[Scored]) -> Table:
    pairs = combinations(by_series(scored).items(), 2)
    found = [(f"{one} minus {other}", differences(ours, theirs)) for (one, ours), (other, theirs) in pairs]
    shown = _measured([figure for _, figure in found])
    return Table(
        headings=("", *shown),
        rows=tuple((name, *_cells(figure, shown)) for name, figure in found),
        title="Differences",
        note="Over the prompts and seeds that both have; empty where they share none.",
    )


def _confusion_table(name: str, scored: Sequence[Scored]) -> Table:
    counts = confusion(scored)
    columns = [*counts, ABSENT]
    return Table(
        headings=("asked for", *columns),
        rows=tuple((asked, *(str(of.get(column, "")) for column in columns)) for asked, of in counts.items()),
        title=f"Who looks like whom: {name}",
        note="How many of a row's subject looked most like which subject of their prompt.",
    )


def _subjects_table(how: RunInfo) -> Table:
    rows = tuple((one.name, one.photos.as_posix(), f"{least:.2f}") for one, least in how.thresholds.items())
    return Table(
        headings=("subject", "photos", "least likeness"),
        rows=rows,
        title="Subjects",
        note="The least likeness that counts as the subject itself.",
    )


def _measured(found: Sequence[Figures]) -> list[str]:
    return list(dict.fromkeys(name for some in found for name, figure in some.items() if figure is not None))


def _cells(found: Figures, shown: Sequence[str]) -> list[str]:
    cells: list[str] = []
    for name in shown:
        figure = found.get(name)
        cells.append("" if figure is None else format_ci(figure))
    return cells


def _meanings(shown: Sequence[str]) -> str:
    return " ".join(f"{name}: {MEANINGS[name]}." for name in shown if name in MEANINGS)
