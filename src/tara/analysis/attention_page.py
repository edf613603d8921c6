"""Attention maps as a page, a contact sheet and a file of scores."""

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from tara.analysis.attention import ImageAttention, Scores, scores_of
from tara.report.grid import Grid, Row, Table, shrunk
from tara.report.heat import heat_over
from tara.report.page import PAGE, page
from tara.report.plots import loss_curve
from tara.report.sheet import contact_sheet
from tara.storage.files import atomic_write

MOST_STEPS = 8  # on the page; attention.json has all
SMALL = 96  # longest side of the images by layer and by step
MEASURES = {
    "alignment": "Pearson correlation of the rare word's map with its class word's, -1 to 1",
    "overlap": "intersection over union of the two regions in which a map is above half of its range, 0 to 1",
    "leakage": "the rare word's highest alignment with another subject's class word",
}
NOTE = (
    "Each map is scaled to its own range. It is the attention probability of the word's tokens, averaged over heads, "
    "layers and steps."
)


@dataclass(frozen=True, eq=False)
class AttentionRow:
    """One row of the page: an image's file, and the attention of its adapters' words."""

    file: str
    attention: ImageAttention

    @cached_property
    def label(self) -> str:
        """The adapters by file and weight, with the alignment loss of their training where their cards agree on it."""
        adapters = [subject.active for subject in self.attention.subjects]
        weights = ["" if active.weight == 1 else f" at {active.weight:g}" for active in adapters]
        names = ", ".join(Path(active.name).stem + weight for active, weight in zip(adapters, weights, strict=True))
        trained = [active.adapter.card.settings for active in adapters]
        forms = {
            str(settings["alignment_loss"]) if settings.get("alignment_weight", 1) else "off"
            for settings in trained
            if "alignment_loss" in settings
        }
        return f"{names}: alignment loss {forms.pop()}" if len(forms) == 1 else names

    @property
    def words(self) -> tuple[str, ...]:
        """The headings over the maps: rare, class, rare, class, ..."""
        return tuple(w for one in self.attention.subjects for w in (one.active.rare_word, one.active.class_word))


def write_attention(out: Path, rows: Sequence[AttentionRow], *, seed: int, command: str) -> None:
    """Write ``index.html``, ``sheet.png`` and ``attention.json`` into a folder.

    Raises:
        TaraError: when it cannot be written to.
    """
    prompt = rows[0].attention.generated.prompt
    total = Grid(rows=tuple(map(_total, rows)), columns=("", *rows[0].words), title=prompt, note=NOTE)
    html = page(
        title=prompt,
        lead="Where each rare word attends, and its class word beside it.",
        grids=[total, *map(_by_layer, rows), *map(_by_step, rows)],
        plots=[_alignment_by_step(rows)],
        tables=[_table(rows)],
        command=command,
    )
    atomic_write(out / "sheet.png", contact_sheet(total).save)
    atomic_write(out / PAGE, html.encode())
    data = {"prompt": prompt, "seed": seed, "command": command, "measures": MEASURES, "rows": [*map(_row_data, rows)]}
    atomic_write(out / "attention.json", (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())


def _total(row: AttentionRow) -> Row:
    """The image, then each word's map over it."""
    image = row.attention.generated.image
    maps = _overlays(image, row.attention.maps.mean)
    return Row(label=row.label, images=(image, *maps), captions=("", *_captions(row.attention.scores)))


def _overlays(image: Image.Image, maps: Tensor) -> tuple[Image.Image, ...]:
    return tuple(heat_over(image, one.numpy()) for one in maps)


def _captions(scores: Sequence[Scores]) -> tuple[str, ...]:
    """The alignment under each rare word, nothing under its class word."""
    return tuple(text for one in scores for text in (f"alignment {one.alignment:.2f}", ""))


def _by_layer(row: AttentionRow) -> Grid:
    maps = row.attention.maps.layers.items()
    return _folded(row, "layer", ((f"{short_name(layer)}, {m.shape[-2]} × {m.shape[-1]}", m) for layer, m in maps))


def _by_step(row: AttentionRow) -> Grid:
    steps = row.attention.maps.steps
    shown = sorted({round(place * (len(steps) - 1) / (MOST_STEPS - 1)) for place in range(MOST_STEPS)})
    return _folded(row, "step", ((f"step {step + 1} of {len(steps)}", steps[step]) for step in shown))


def _folded(row: AttentionRow, unit: str, parts: Iterable[tuple[str, Tensor]]) -> Grid:
    small = shrunk(row.attention.generated.image, SMALL)
    rows = [
        Row(label=label, images=_overlays(small, maps), captions=_captions(scores_of(maps))) for label, maps in parts
    ]
    return Grid(rows=tuple(rows), columns=row.words, title=f"By {unit}: {row.label}", folded=True)


def short_name(layer: str) -> str:
    """A cross-attention's place in the network: ``down 1.0.0`` is block, attention and transformer, counted from 0."""
    numbers = re.findall(r"\.(\d+)", layer)
    return f"{layer.partition('_')[0]} {'.'.join(numbers)}"


def _alignment_by_step(rows: Sequence[AttentionRow]) -> Image.Image:
    series: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        by_step = [scores_of(maps) for maps in row.attention.maps.steps]
        for index, subject in enumerate(row.attention.subjects):
            name = f"{subject.active.rare_word} on {subject.active.class_word}, {row.label}"
            points = [(step, scores[index].alignment) for step, scores in enumerate(by_step, 1)]
            series[f"{name} ({row.file})" if name in series else name] = points
    return Image.open(io.BytesIO(loss_curve(series, title="Alignment by step", unit="alignment")))


def _table(rows: Sequence[AttentionRow]) -> Table:
    lines: list[tuple[str, ...]] = []
    for row in rows:
        for subject, scores in zip(row.attention.subjects, row.attention.scores, strict=True):
            values = ("-" if value is None else f"{value:.3f}" for value in asdict(scores).values())
            lines.append((row.label, subject.active.rare_word, subject.active.class_word, *values))
    note = " ".join(f"{name.capitalize()}: {meaning}." for name, meaning in MEASURES.items())
    headings = ("adapters", "rare word", "class word", *MEASURES)
    return Table(headings=headings, rows=tuple(lines), title="Scores", note=note)


def _row_data(row: AttentionRow) -> dict[str, Any]:
    maps = row.attention.maps
    layers = {layer: scores_of(values) for layer, values in maps.layers.items()}
    steps = [(timestep, scores_of(values)) for timestep, values in zip(maps.timesteps, maps.steps, strict=True)]
    subjects = [
        {
            "adapter": subject.active.name,
            "rare_word": subject.active.rare_word,
            "class_word": subject.active.class_word,
            "tokens": {"rare_word": subject.rare, "class_word": subject.class_word},
            **_rounded(row.attention.scores[index]),
            "layers": {layer: _rounded(scores[index]) for layer, scores in layers.items()},
            "steps": [{"timestep": timestep, **_rounded(scores[index])} for timestep, scores in steps],
        }
        for index, subject in enumerate(row.attention.subjects)
    ]
    return {"label": row.label, "image": row.file, "subjects": subjects}


def _rounded(scores: Scores) -> Mapping[str, float | None]:
    return {name: None if value is None else round(value, 6) for name, value in asdict(scores).items()}
