"""The page of a training run: previews and photos first, then the loss, the settings and the command."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tara.families.base import Base
from tara.families.family import Defaults
from tara.report.command_line import flags
from tara.report.grid import Grid, Row, Table
from tara.report.page import page
from tara.report.plots import loss_curve
from tara.storage.files import atomic_write
from tara.storage.images import read_image
from tara.storage.photos import Photo
from tara.training.concept_settings import ConceptSettings
from tara.training.prompts import preview_prompt
from tara.training.resolved import ResolvedSetting, resolved_settings, setting_text
from tara.training.run.folder import RunFolder
from tara.training.run.metrics import read_metrics
from tara.training.settings import BASE_DEFAULTS, Recipe, TrainSettings, distinct_names

MOST_PHOTOS, MOST_STEPS, MOST_PREVIEWS = 6, 6, 4
OWNERS = {"base": "this base", "": "all bases"}
ENDS = 0.1  # fraction of the steps over which the first and the last loss are averaged


def write_run_page(folder: RunFolder, recipe: Recipe, photos: Sequence[Sequence[Photo]], base: Base) -> None:
    """Write ``index.html`` and ``loss.png`` from a run's folder and each concept's photos; raises TaraError."""
    rows, settings = list(read_metrics(folder.metrics)), recipe.settings
    if curves := _curves(rows):
        atomic_write(folder.loss_curve, loss_curve(curves))
    done = rows[-1]["step"] if rows else 0
    progress = f"{done} steps" if done >= settings.steps else f"stopped after {done} of {settings.steps} steps"
    grids: list[Grid] = []
    for name, concept, own_photos in zip(distinct_names(recipe.concepts), recipe.concepts, photos, strict=True):
        grids += _previews(folder.previews_of(name), concept, settings)
        shown = own_photos[:MOST_PHOTOS]
        row = Row(images=tuple(photo.image for photo in shown), captions=tuple(photo.name for photo in shown))
        grids.append(Grid(rows=(row,), title=f"Photos of {concept.label}"))
    versions: dict[str, str] = json.loads(folder.versions.read_text(encoding="utf-8"))
    html = page(
        title=" and ".join(concept.label for concept in recipe.concepts),
        lead=f"Trained on the base {settings.base}: {progress}.",
        grids=grids,
        plots=[read_image(folder.loss_curve)] if folder.loss_curve.exists() else [],
        tables=[
            _losses(rows),
            *_settings(settings, base),
            Table(headings=("package", "version"), rows=tuple(versions.items()), title="Versions"),
        ],
        command=train_command(recipe, base.defaults),
    )
    atomic_write(folder.page, html.encode())


def train_command(recipe: Recipe, defaults: Defaults) -> str:
    """The command that trains a recipe on a base with these defaults.

    With several concepts, it names the run folder.
    """
    first, *others = recipe.concepts
    own = {name: getattr(defaults, name) for name in BASE_DEFAULTS}
    given = [str(recipe.run_folder), "--overwrite"] if others else [*flags(first), *flags(recipe.settings, own)]
    return shlex.join(["tara", "train", *given])


def spread(values: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of the values, evenly spread and including the last one."""
    if len(values) <= most:
        return list(values)
    return [values[round((place + 1) * len(values) / most) - 1] for place in range(most)]


def _previews(previews: Mapping[int, Sequence[Path]], concept: ConceptSettings, settings: TrainSettings) -> list[Grid]:
    """A concept's previews, one column for each step that had one."""
    steps = spread(list(previews), MOST_STEPS)
    count = min(MOST_PREVIEWS, max((len(previews[step]) for step in steps), default=0))
    rows = [
        Row(
            label=f"seed {settings.seed + number}",
            images=tuple(
                read_image(previews[step][number]) if number < len(previews[step]) else None for step in steps
            ),
        )
        for number in range(count)
    ]
    columns = tuple(f"step {step}" for step in steps)
    return [Grid(rows=tuple(rows), columns=columns, title=preview_prompt(concept, settings))] if rows else []


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Each concept's losses by step, without those that were not finite."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, losses in row["concepts"].items():
            if losses["loss"] is not None:
                curves.setdefault(name, []).append((row["step"], losses["loss"]))
    return curves


def _losses(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Each concept's losses at both ends of the run."""
    names = list(dict.fromkeys(name for row in rows for name in row["concepts"]))
    ends = max(1, round(ENDS * len(rows)))
    table: list[tuple[str, ...]] = []
    for name in names:
        losses = [row["concepts"][name] for row in rows if name in row["concepts"]]
        means = [_mean(losses[-ends:], part) for part in ("loss", "denoising", "alignment")]
        skipped = sum(bool(step["skipped"]) for step in losses)
        table.append((name, _mean(losses[:ends], "loss"), *means, str(skipped)))
    return Table(
        headings=("concept", "loss, first steps", "loss, last steps", "denoising", "alignment", "steps skipped"),
        rows=tuple(table),
        title="Losses",
        note=f"Means over {ends} steps; denoising and alignment loss of the last steps, before their weights.",
    )


def _mean(rows: Sequence[Mapping[str, Any]], part: str) -> str:
    values = [row[part] for row in rows if row[part] is not None]  # not those that were not finite
    return f"{sum(values) / len(values):.4f}" if values else "-"


def _settings(settings: TrainSettings, base: Base) -> list[Table]:
    """Tables of all settings except the base, as used: those that differ from the default, and the others folded."""
    resolved = resolved_settings(settings, base)
    changed = tuple(
        (setting.name, setting_text(setting.name, setting.value), _default(setting))
        for setting in resolved
        if not setting.is_default
    )
    others = tuple(
        (setting.name, setting_text(setting.name, setting.value), OWNERS.get(setting.default_of, setting.default_of))
        for setting in resolved
        if setting.is_default
    )
    return [
        Table(
            headings=("setting", "value", "default"),
            rows=changed,
            title="Settings that are not the default",
            note="" if changed else "None: all settings are the default.",
        ),
        Table(headings=("setting", "value", "default of"), rows=others, title="All other settings", folded=True),
    ]


def _default(setting: ResolvedSetting) -> str:
    """A setting's default and, if it depends on the base, the base or family that it belongs to."""
    text, owner = setting_text(setting.name, setting.default), OWNERS.get(setting.default_of, setting.default_of)
    return f"{text} ({owner})" if setting.default_of else text
