"""The loss of a stage as a picture, from the record that its training keeps."""

from __future__ import annotations

import json
from pathlib import Path


def draw_curve(record: Path) -> Path:
    """Draw `stage.png` beside `stage.jsonl`, whose lines are {"step": ..., "loss": ...}; returns its path.

    A run that was resumed has written some steps twice: the later loss counts.
    """
    from matplotlib.figure import Figure  # a second of start-up that only this needs

    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    losses: dict[int, float] = {line["step"]: line["loss"] for line in lines}
    steps = sorted(losses)
    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.plot(steps, [losses[step] for step in steps], color="#2f6db5", linewidth=1.5)
    axes.set_title(f"{record.stem}: loss", loc="left", fontweight="bold")
    axes.set_xlabel("step")
    axes.grid(axis="y", color="#e6e6e6")
    axes.spines[["top", "right"]].set_visible(False)
    picture = record.with_suffix(".png")
    figure.savefig(picture)
    return picture
