"""Writes attention maps as a page, a contact sheet and a JSON file of scores."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from tara.analysis.attention import ImageAttention, scores_of
from tara.report.grid import Grid, Row, Table, shrunk
from tara.report.overlays import heat_over
from tara.report.page import PAGE, page
from tara.report.sheet import contact_sheet
from tara.storage.files import atomic_write

MOST_STEPS = 8  # most rows on the page; attention.json has all
SMALL = 96  # longest side in pixels of the images by layer and by step
MEASURES = {
    "map_correlation": "Pearson correlation of the rare word's map with its class word's, -1 to 1",
    "overlap": "intersection over union of the two regions in which a map is above half of its range, 0 to 1",
    "other_correlation": "the rare word's highest map correlation with another subject's class word",
}
NOTE = (
    "Each map is scaled to its own range. It is the attention probability of the word's tokens, averaged over heads, "
    "layers and steps. The map correlation is that of a rare word with its class word. Adapters that put two "
    "subjects into one image reached 0.87 with the alignment loss and 0.57 without it (benchmarks/study_toyland.py)."
)


@dataclass(frozen=True, eq=False)
class AttentionRow:
    """One row of the page: an image's file, and the attention of its adapters' words."""

    file: str
    attention: ImageAttention

    @cached_property
    def label(self) -> str:
        """The adapters by file and weight, and their alignment loss if all cards that name one name the same."""
        adapters = [subject.active for subject in self.attention.subjects]
        weights = ["" if active.weight == 1 else f" at {active.weight:g}" for active in adapters]
        names = ", ".join(Path(active.name).stem + weight for active, weight in zip(adapters, weights, strict=True))
        forms = {
            str(settings["alignment_loss"]) if settings.get("alignment_weight", 1) else "off"
            for settings in (active.adapter.card.settings for active in adapters)
            if "alignment_loss" in settings
        }
        return f"{names}: alignment loss {forms.pop()}" if len(forms) == 1 else names

    @property
    def words(self) -> tuple[str, ...]:
        """The headings over the maps: rare, class, rare, class, ..."""
        adapters = [subject.active for subject in self.attention.subjects]
        return tuple(
            text
            for adapter in adapters
            for text in (f"rare word {adapter.rare_word}", f"class word {adapter.class_word}")
        )


def write_attention(out: Path, rows: Sequence[AttentionRow], *, seed: int, command: str) -> None:
    """Write ``index.html``, ``sheet.png`` and ``attention.json`` into a folder.

    Raises:
        TaraError: when it cannot be written to.
    """
    prompt, scores = rows[0].attention.generated.request.prompt, [_scores(row) for row in rows]
    images = [row.attention.generated.image for row in rows]
    shown = [
        _row(row.label, image, row.attention.maps.mean, first=image) for row, image in zip(rows, images, strict=True)
    ]
    grid = Grid(rows=tuple(shown), columns=("image", *rows[0].words), title=prompt, note=NOTE)
    html = page(
        title=prompt,
        lead="Attention maps of each rare word and its class word.",
        grids=[grid, *map(_by_layer, rows), *map(_by_step, rows)],
        tables=[_table(scores)],
        command=command,
    )
    atomic_write(out / "sheet.png", contact_sheet(grid).save)
    atomic_write(out / PAGE, html.encode())
    data = {"prompt": prompt, "seed": seed, "command": command, "measures": MEASURES, "rows": scores}
    atomic_write(out / "attention.json", (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())


def _row(label: str, image: Image.Image, maps: Tensor, first: Image.Image | None = None) -> Row:
    """The words' maps over an image, with the map correlation under each rare word."""
    images = [heat_over(image, word_map.numpy()) for word_map in maps]
    captions = [text for scores in scores_of(maps) for text in (f"correlation {scores.map_correlation:.2f}", "")]
    if first is not None:
        images, captions = [first, *images], ["", *captions]
    return Row(label=label, images=tuple(images), captions=tuple(captions))


def _by_layer(row: AttentionRow) -> Grid:
    maps = row.attention.maps.layers.items()
    return _folded(row, "layer", ((f"{short_name(layer)}, {m.shape[-2]} × {m.shape[-1]}", m) for layer, m in maps))


def _by_step(row: AttentionRow) -> Grid:
    steps = row.attention.maps.steps
    shown = sorted({round(place * (len(steps) - 1) / (MOST_STEPS - 1)) for place in range(MOST_STEPS)})
    return _folded(row, "step", ((f"step {step + 1} of {len(steps)}", steps[step]) for step in shown))


def _folded(row: AttentionRow, unit: str, parts: Iterable[tuple[str, Tensor]]) -> Grid:
    small = shrunk(row.attention.generated.image, SMALL)
    rows = tuple(_row(label, small, maps) for label, maps in parts)
    return Grid(rows=rows, columns=row.words, title=f"By {unit}: {row.label}", folded=True)


def short_name(layer: str) -> str:
    """A cross-attention's place in the network: ``down 1.0.0`` is block, attention and transformer, counted from 0."""
    numbers = re.findall(r"\.(\d+)", layer)
    return f"{layer.partition('_')[0]} {'.'.join(numbers)}"


def _scores(row: AttentionRow) -> dict[str, Any]:
    """A row of ``attention.json``."""
    maps = row.attention.maps
    layers = {layer: scores_of(values) for layer, values in maps.layers.items()}
    steps = [(timestep, scores_of(values)) for timestep, values in zip(maps.timesteps, maps.steps, strict=True)]
    subjects = [
        {
            "adapter": subject.active.name,
            "rare_word": subject.active.rare_word,
            "class_word": subject.active.class_word,
            "tokens": {"rare_word": subject.rare_positions, "class_word": subject.class_positions},
            **asdict(row.attention.scores[index]),
            "layers": {layer: asdict(scores[index]) for layer, scores in layers.items()},
            "steps": [{"timestep": timestep, **asdict(scores[index])} for timestep, scores in steps],
        }
        for index, subject in enumerate(row.attention.subjects)
    ]
    return {"label": row.label, "image": row.file, "subjects": subjects}


def _table(scores: Sequence[dict[str, Any]]) -> Table:
    lines: list[tuple[str, ...]] = []
    for row in scores:
        for subject in row["subjects"]:
            values = ["-" if subject[name] is None else f"{subject[name]:.3f}" for name in MEASURES]
            lines.append((row["label"], subject["rare_word"], subject["class_word"], *values))
    note = " ".join(f"{_heading(name).capitalize()}: {meaning}." for name, meaning in MEASURES.items())
    headings = ("adapters", "rare word", "class word", *map(_heading, MEASURES))
    return Table(headings=headings, rows=tuple(lines), title="Scores", note=note)


def _heading(measure: str) -> str:
    return measure.replace("_", " ")
