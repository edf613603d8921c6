"""A training run as a page: previews and photos first, then the loss, the settings and the command."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tara.report.grid import Grid, Row, Table
from tara.report.page import page
from tara.storage.files import atomic_write
from tara.storage.images import read_image
from tara.training.data.examples import Example
from tara.training.run.command import train_command
from tara.training.run.folder import RunFolder
from tara.training.settings import ConceptSettings, Recipe, TrainSettings, distinct_names

MOST_PHOTOS, MOST_STEPS, MOST_PREVIEWS = 6, 6, 4
WORDS: Mapping[bool | None, str] = {None: "-", True: "yes", False: "no"}
ENDS = 0.1  # the part of the steps whose mean loss stands for the beginning and for the end


def write_run_page(folder: RunFolder, recipe: Recipe, examples: Sequence[Sequence[Example]]) -> None:
    """Write ``index.html`` of a run, from what its folder holds so far and each concept's photos.

    Raises:
        TaraError: when it cannot be written.
    """
    rows, settings = list(folder.rows()), recipe.settings
    done = rows[-1]["step"] if rows else 0
    progress = f"{done} steps" if done >= settings.steps else f"stopped after {done} of {settings.steps} steps"
    grids: list[Grid] = []
    for name, concept, photos in zip(distinct_names(recipe.concepts), recipe.concepts, examples, strict=True):
        grids += _pictures(folder.previews(name), concept, photos, settings)
    html = page(
        title=" and ".join(concept.label for concept in recipe.concepts),
        lead=f"Learned on the base {settings.base}: {progress}.",
        grids=grids,
        plots=_curve(folder),
        tables=[_losses(rows), _settings(settings), _versions(folder)],
        command=train_command(recipe),
    )
    atomic_write(folder.page, html.encode())


def _pictures(
    previews: Mapping[int, Sequence[Path]], concept: ConceptSettings, photos: Sequence[Example], settings: TrainSettings
) -> list[Grid]:
    """A concept's previews, one column for each step that had one, and its photos."""
    shown = spread(list(previews), MOST_STEPS)
    count = min(MOST_PREVIEWS, max((len(previews[step]) for step in shown), default=0))
    seeds = range(settings.seed, settings.seed + count)
    grids = [Grid(rows=_photo_rows(photos), title=f"Photos of {concept.label}")]
    if shown:
        rows = tuple(
            Row(label=f"seed {seed}", images=tuple(_preview(previews[step], number) for step in shown))
            for number, seed in enumerate(seeds)
        )
        prompt = concept.fill(settings.preview_prompt or concept.phrase)
        grids.insert(0, Grid(rows=rows, columns=tuple(f"step {step}" for step in shown), title=prompt))
    return grids


def _photo_rows(photos: Sequence[Example]) -> tuple[Row, ...]:
    some = photos[:MOST_PHOTOS]
    return (Row(images=tuple(photo.image for photo in some), captions=tuple(photo.name for photo in some)),)


def _preview(paths: Sequence[Path], number: int) -> Image.Image | None:
    return read_image(paths[number]) if number < len(paths) else None


def spread(values: Sequence[int], most: int) -> list[int]:
    """At most so many of the values, evenly spread, the last one among them."""
    if len(values) <= most:
        return list(values)
    return [values[round((place + 1) * len(values) / most) - 1] for place in range(most)]


def _curve(folder: RunFolder) -> list[Image.Image]:
    return [read_image(folder.loss_curve)] if folder.loss_curve.exists() else []


def _losses(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Each concept's losses at both ends of the run."""
    names = list(dict.fromkeys(name for row in rows for name in row["concepts"]))
    ends = max(1, round(ENDS * len(rows)))
    table: list[tuple[str, ...]] = []
    for name in names:
        of = [row["concepts"][name] for row in rows if name in row["concepts"]]
        skipped = sum(bool(one["skipped"]) for one in of)
        losses = [_mean(of[:ends], "loss"), *(_mean(of[-ends:], part) for part in ("loss", "denoising", "alignment"))]
        table.append((name, *losses, str(skipped)))
    return Table(
        headings=("concept", "loss, at first", "loss, at last", "denoising", "alignment", "steps skipped"),
        rows=tuple(table),
        title="Losses",
        note=f"Means over {ends} steps; the parts of the loss as they were at last, before their weights.",
    )


def _mean(rows: Sequence[Mapping[str, Any]], part: str) -> str:
    values = [row[part] for row in rows if row[part] is not None]  # what was not finite
    return f"{sum(values) / len(values):.4f}" if values else "-"


def _settings(settings: TrainSettings) -> Table:
    """All settings, those that are not at their default first."""
    defaults = {name: field.default for name, field in TrainSettings.model_fields.items() if not field.is_required()}
    shown = [(name, value) for name, value in settings if name in defaults]  # the base is named above
    changed = [(name, _text(value), _text(defaults[name])) for name, value in shown if value != defaults[name]]
    others = [(name, _text(value), "") for name, value in shown if value == defaults[name]]
    return Table(headings=("setting", "value", "default, if another"), rows=(*changed, *others), title="Settings")


def _text(value: object) -> str:
    return WORDS[value] if value is None or isinstance(value, bool) else str(value)


def _versions(folder: RunFolder) -> Table:
    versions: dict[str, str] = json.loads((folder.path / "versions.json").read_text(encoding="utf-8"))
    return Table(headings=("what", "version"), rows=tuple(versions.items()), title="Versions")
