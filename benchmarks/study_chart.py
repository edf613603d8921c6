"""The study's variants relative to the default, as one plot: differences with their intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

PANELS = (("success", "success"), ("identity_absent_zero", "identity, absent counted as 0"), ("leakage", "leakage"))
"""Metrics of the gains, and the titles of their panels."""
COLORS = ("#2a6cb0", "#cf6228", "#3d8f5f", "#7d5ba6")
ROW = 0.24  # inches


def plot_gains(gains: list[dict[str, Any]], path: Path) -> None:
    """Each variant minus the default over pairs and triples, one colour a part, as a PNG file."""
    shown = gains[1:]  # the first is the default itself
    parts = list(dict.fromkeys(row["part"] for row in shown))
    figure = Figure(figsize=(11, 1.2 + ROW * len(shown)), layout="constrained")
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for axes, (name, title) in zip(panels, PANELS, strict=True):
        axes.axvline(0, color="#68707a", linewidth=1)
        for place, row in enumerate(shown):
            mean, low, high = row[name]
            color = COLORS[parts.index(row["part"]) % len(COLORS)]
            axes.plot([low, high], [place, place], color=color, linewidth=2, solid_capstyle="round")
            axes.plot([mean], [place], "o", color=color, markersize=4)
        axes.set_title(title, fontsize=10, loc="left")
        axes.tick_params(length=0, labelsize=8)
        axes.grid(axis="x", color="#e2e5e9")
        axes.spines[["top", "right", "left"]].set_visible(False)
    panels[0].set_yticks(range(len(shown)), [row["variant"] for row in shown])
    panels[0].invert_yaxis()
    figure.supxlabel("minus the default, with 95 % intervals: prompts of two and three subjects", fontsize=9)
    figure.savefig(path, dpi=130, format="png")
