"""The report page of an evaluation: images with their detections, then the metrics, then the command."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from tara.evaluation.metrics import ABSENT, Metrics, ScoredImage, by_series, keyed
from tara.evaluation.statistics import format_ci
from tara.report.grid import Grid, Row, Table, shrunk
from tara.report.page import page
from tara.report.plots import COLOURS
from tara.storage.images import read_image
from tara.storage.photo_folders import photo_folders

Cells = tuple[str, ...]
SIDE = 320  # longest side of an image in pixels; the page embeds the images
PHOTO = 160  # longest side of a subject's photo in pixels
MAX_ROWS = 24
COLUMNS = 4
COLOUR_NAMES = ("blue", "orange", "green", "purple", "ochre", "grey")  # names of COLOURS, in their order
INTERVALS = "Mean and 95 % bootstrap interval over groups of subjects, or over images if there is only one group."
PAIRED = "Over the prompts and seeds that both have; empty if there are none."
MEANINGS = {
    "success": "every subject of the prompt is present, with a similarity above its threshold",
    "presence": "share of the subjects that are detected",
    "identity": "similarity of the present subjects to their own photos",
    "identity_absent_zero": "identity, with 0 for absent subjects",
    "leakage": "how much more similar a subject is to another subject of the prompt than to itself",
    "identity_clip_i": "identity by CLIP",
    "leakage_clip_i": "leakage by CLIP",
    "clip_t": "CLIP similarity of image and prompt, with class words in place of rare words",
    "plain_clip_t": "CLIP similarity of image and prompt",
    "plain_clip_i": "CLIP similarity of the whole image and all photos of its subjects",
    "plain_dino": "DINO similarity of the whole image and all photos of its subjects",
}


def evaluation_page(scored: Sequence[ScoredImage], results: Mapping[str, Any]) -> str:
    """The page as HTML, from the images and the content of ``results.json``."""
    means: dict[Cells, Metrics] = {}
    for series in results["series"]:
        means[series["name"], "", str(series["count"])] = series["metrics"]
        for part in series["categories"]:
            means[series["name"], part["name"], str(part["count"])] = part["metrics"]
    differences = {(f"{pair['first']} minus {pair['second']}",): pair["metrics"] for pair in results["differences"]}
    meanings = [
        f"{name}: {text}." for name, text in MEANINGS.items() if any(name in metrics for metrics in means.values())
    ]
    subjects = [(entry["subject"], entry["photos"], f"{entry['threshold']:.2f}") for entry in results["subjects"]]
    tables = [
        _metric_table("Metrics", ("series", "", "images"), means, " ".join([INTERVALS, *meanings])),
        *([_metric_table("Differences", ("",), differences, PAIRED)] if differences else []),
        *(_confusion_table(series["name"], series["confusion"]) for series in results["series"]),
        Table(headings=("subject", "photos", "minimum similarity"), rows=tuple(subjects), title="Subjects"),
        Table(headings=("purpose", "model"), rows=tuple(results["models"].items()), title="Models"),
    ]
    return page(
        title=f"Evaluation: {', '.join(series['name'] for series in results['series'])}",
        lead=f"{len(scored)} images of {len(subjects)} subjects, scored subject by subject.",
        grids=[_grid(scored)],
        tables=tables,
        command=results["command"],
    )


def _grid(scored: Sequence[ScoredImage]) -> Grid:
    """Images beside their subjects' photos, a column per series.

    A single series has its images of a prompt side by side.
    """
    series = by_series(scored)
    rows: list[Row] = []
    if len(series) == 1:
        prompts = [list(images) for _, images in groupby(scored, lambda image: image.record.prompt)]
        parts = [images[first : first + COLUMNS] for images in prompts for first in range(0, len(images), COLUMNS)]
        columns = [""] * max(map(len, parts))
        rows = [_row(part[0].record.prompt, part, [_seed(image) for image in part]) for part in parts[:MAX_ROWS]]
    else:
        columns = list(series)
        keyed_images = [dict(keyed(images)) for images in series.values()]
        keys = list(dict.fromkeys(key for images in keyed_images for key in images))
        parts = [[images.get(key) for images in keyed_images] for key in keys]
        for part in parts[:MAX_ROWS]:
            shown = next(image for image in part if image)
            rows.append(_row(_seed(shown) + shown.record.prompt, part, [""] * len(part)))
    colours = COLOUR_NAMES[: max(len(image.record.subjects) for image in scored)]
    note = f"Frames, in the order of a prompt's subjects: {', '.join(colours)}."
    if len(rows) < len(parts):
        note += f" The first {len(rows)} of {len(parts)} rows."
    return Grid(rows=tuple(rows), columns=("photos", *columns), title="Images", note=note)


def _row(label: str, images: Sequence[ScoredImage | None], seeds: Sequence[str]) -> Row:
    captions = [seed + _caption(image) if image else "" for image, seed in zip(images, seeds, strict=True)]
    photos = _photos(next(image for image in images if image))
    framed = [_framed(image) if image else None for image in images]
    return Row(label=label, images=(photos, *framed), captions=("", *captions))


def _photos(scored: ScoredImage) -> Image.Image | None:
    """One photo per subject of an image, side by side in the frames' colours; None without photos."""
    folders = [subject.photos for subject in scored.record.subjects if subject.photos.is_dir()]
    files = [photos[0] for folder in folders if (photos := photo_folders(folder)[0].photos)]
    if not files:
        return None
    joined = Image.new("RGB", (PHOTO * len(files), PHOTO))
    for number, file in enumerate(files):
        photo = ImageOps.fit(read_image(file), (PHOTO - 6, PHOTO - 6))
        joined.paste(ImageOps.expand(photo, 3, COLOURS[number % len(COLOURS)]), (number * PHOTO, 0))
    return joined


def _seed(scored: ScoredImage) -> str:
    return "" if scored.record.seed is None else f"seed\N{NO-BREAK SPACE}{scored.record.seed}: "


def _caption(scored: ScoredImage) -> str:
    """The identity of each subject, for instance ``xlo dog 0.81 · szn cat absent``."""
    parts: list[str] = []
    for subject, score in zip(scored.record.subjects, scored.score.subjects, strict=True):
        identity = score.identity.get(scored.score.encoders[0])
        below = "" if score.correct else ", below threshold"
        parts.append(f"{subject.name} {ABSENT if identity is None else f'{identity:.2f}{below}'}")
    return " · ".join(parts)


def _framed(scored: ScoredImage) -> Image.Image:
    """The image at the page's size, with a frame around every present subject."""
    image = shrunk(read_image(scored.record.path), SIDE)
    draw, last = ImageDraw.Draw(image), (image.width - 1, image.height - 1)
    for index, subject in enumerate(scored.score.subjects):
        if subject.box is not None:
            corners = [round(min(max(0.0, part), 1.0) * side) for part, side in zip(subject.box, last * 2, strict=True)]
            draw.rectangle(corners, outline=COLOURS[index % len(COLOURS)], width=max(1, max(image.size) // 100))
    return image


def _metric_table(title: str, headings: Cells, metrics: Mapping[Cells, Metrics], note: str) -> Table:
    """A table with a row per key, whose first cells are the key. A metric without values has no column."""
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    rows = [
        (*first, *(format_ci(values[name]) if name in values else "" for name in names))
        for first, values in metrics.items()
    ]
    return Table(headings=(*headings, *names), rows=tuple(rows), title=title, note=note)


def _confusion_table(name: str, counts: Mapping[str, Mapping[str, int]]) -> Table:
    columns = [*counts, ABSENT]
    rows = [(expected, *(str(of.get(column, "")) for column in columns)) for expected, of in counts.items()]
    note = "How many detections of a row's subject are most similar to which subject of their prompt."
    return Table(headings=("expected", *columns), rows=tuple(rows), title=f"Confusion: {name}", note=note)
