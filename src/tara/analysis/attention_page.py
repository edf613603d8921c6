"""What the words of a prompt attend to, for people and for programs: a page, a sheet and the scores."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from tara.analysis.attention import Attended, Scores
from tara.report.heat import heat_over
from tara.report.page import PAGE, Figure, Grid, Row, Table, contact_sheet, page, png_bytes, shrunk
from tara.report.plots import loss_curve
from tara.storage.files import atomic_write

MOST_STEPS = 8  # shown one by one; attention.json has all
SMALL = 96  # longest side of the pictures that are there by the dozen
MEASURES = {
    "alignment": "correlation (Pearson) of the rare word's map with its class word's, -1 to 1",
    "overlap": "intersection over union of the two maps' regions, where a map is over half of its range, 0 to 1",
    "astray": "the rare word's highest alignment with another subject's class word",
}
NOTE = (
    "Each map is scaled to its own range. It is the attention probability of the word's tokens, a mean over heads, "
    "layers and steps."
)


@dataclass(frozen=True, eq=False)
class AttentionRow:
    """One row of the page: some adapters, what they drew, the file of that, and where their words attend."""

    label: str
    file: str
    attended: Attended


def label_of(attended: Attended) -> str:
    """The adapters of a picture by file, weight and how they were aligned in training, as far as they tell."""
    active_adapters = [subject.active for subject in attended.subjects]
    names = ", ".join(
        Path(active.name).stem + ("" if active.weight == 1 else f" at {active.weight:g}") for active in active_adapters
    )
    told = [active.adapter.card.settings for active in active_adapters]
    forms = {
        "off" if not one.get("alignment_weight", 1) else str(one["alignment_loss"])
        for one in told
        if "alignment_loss" in one
    }
    if len(forms) != 1:
        return names
    form = forms.pop()
    return f"{names}: trained without TAL" if form == "off" else f"{names}: trained with TAL ({form})"


def write_attention(out: Path, rows: Sequence[AttentionRow], *, seed: int, command: str) -> None:
    """Write ``index.html``, ``sheet.png`` and ``attention.json`` into a folder.

    Raises:
        TaraError: when it cannot be written to.
    """
    prompt = rows[0].attended.picture.prompt
    grid = _grid(rows, prompt)
    html = page(
        title=prompt,
        lead="Where each rare word attends, and its class word beside it.",
        grids=[replace(grid, title=""), *(_by_layer(row) for row in rows), *(_by_step(row) for row in rows)],
        figures=[_course(rows)],
        tables=[_table(rows)],
        command=command,
    )
    atomic_write(out / "sheet.png", png_bytes(contact_sheet(grid)))
    atomic_write(out / PAGE, html.encode())
    facts = {"prompt": prompt, "seed": seed, "command": command, "measures": MEASURES, "rows": [*map(_facts, rows)]}
    atomic_write(out / "attention.json", (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())


def _words(attended: Attended) -> tuple[str, ...]:
    """The headings over the maps: rare, class, rare, class, ..."""
    return tuple(word for one in attended.subjects for word in (one.active.rare_word, one.active.class_word))


def _overlays(image: Image.Image, maps: Tensor) -> tuple[Image.Image, ...]:
    return tuple(heat_over(image, one.numpy()) for one in maps)


def _captions(scores: Sequence[Scores]) -> tuple[str, ...]:
    """Under each rare word its alignment, under its class word nothing."""
    return tuple(text for one in scores for text in (f"alignment {one.alignment:.2f}", ""))


def _grid(rows: Sequence[AttentionRow], prompt: str) -> Grid:
    """A row of pictures for each set of adapters: what was drawn, then the maps over it."""
    found: list[Row] = []
    for row in rows:
        image = row.attended.picture.image
        images = (image, *_overlays(image, row.attended.maps.mean))
        found.append(Row(label=row.label, images=images, captions=("", *_captions(row.attended.scores))))
    return Grid(rows=tuple(found), columns=("", *_words(rows[0].attended)), title=prompt, note=NOTE)


def _by_layer(row: AttentionRow) -> Grid:
    small, attended = shrunk(row.attended.picture.image, SMALL), row.attended
    rows = tuple(
        Row(
            label=f"{short_name(layer)}, {maps.shape[-2]} × {maps.shape[-1]}",
            images=_overlays(small, maps),
            captions=_captions(attended.layer_scores[layer]),
        )
        for layer, maps in attended.maps.layers.items()
    )
    return Grid(rows=rows, columns=_words(attended), title=f"By layer: {row.label}", folded=True)


def _by_step(row: AttentionRow) -> Grid:
    small, attended = shrunk(row.attended.picture.image, SMALL), row.attended
    count = len(attended.maps.steps)
    shown = sorted({round(place * (count - 1) / (MOST_STEPS - 1)) for place in range(MOST_STEPS)})
    rows = tuple(
        Row(
            label=f"step {step + 1} of {count}",
            images=_overlays(small, attended.maps.steps[step]),
            captions=_captions(attended.step_scores[step]),
        )
        for step in shown
    )
    return Grid(rows=rows, columns=_words(attended), title=f"By step: {row.label}", folded=True)


def short_name(layer: str) -> str:
    """A cross-attention's place in the U-Net: ``down 1.0.0`` is block, attention and transformer, counted from 0."""
    *numbers, _attn2 = re.findall(r"\d+", layer)
    return f"{layer.partition('_')[0]} {'.'.join(numbers)}"


def _course(rows: Sequence[AttentionRow]) -> Figure:
    """Every subject's alignment from step to step."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for index, subject in enumerate(row.attended.subjects):
            course = [(step + 1, of[index].alignment) for step, of in enumerate(row.attended.step_scores)]
            name = f"{subject.active.rare_word} on {subject.active.class_word}, {row.label}"
            series[name if name not in series else f"{name} ({row.file})"] = course
    curve = Image.open(io.BytesIO(loss_curve(series, title="Alignment by step", unit="alignment")))
    return Figure(image=curve)


def _table(rows: Sequence[AttentionRow]) -> Table:
    found: list[tuple[str, ...]] = []
    for row in rows:
        for subject, scores in zip(row.attended.subjects, row.attended.scores, strict=True):
            leakage_score = "-" if scores.leakage_score is None else f"{scores.leakage_score:.3f}"
            words = subject.active.rare_word, subject.active.class_word
            found.append((row.label, *words, f"{scores.alignment:.3f}", f"{scores.overlap:.3f}", leakage_score))
    note = " ".join(f"{name.capitalize()}: {meaning}." for name, meaning in MEASURES.items())
    return Table(
        headings=("adapters", "rare word", "class word", *MEASURES), rows=tuple(found), title="Scores", note=note
    )


def _facts(row: AttentionRow) -> dict[str, Any]:
    """A row for programs."""
    attended = row.attended
    subjects: list[dict[str, Any]] = []
    for index, subject in enumerate(attended.subjects):
        subjects.append(
            {
                "adapter": subject.active.name,
                "rare_word": subject.active.rare_word,
                "class_word": subject.active.class_word,
                "tokens": {"rare_word": subject.rare, "class_word": subject.class_word},
                **_rounded(attended.scores[index]),
                "layers": {layer: _rounded(of[index]) for layer, of in attended.layer_scores.items()},
                "steps": [
                    {"timestep": timestep, **_rounded(of[index])}
                    for timestep, of in zip(attended.maps.timesteps, attended.step_scores, strict=True)
                ],
            }
        )
    return {"label": row.label, "picture": row.file, "subjects": subjects}


def _rounded(scores: Scores) -> Mapping[str, float | None]:
    return {name: None if value is None else round(value, 6) for name, value in asdict(scores).items()}
