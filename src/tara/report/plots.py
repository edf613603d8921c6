"""Curves as PNG bytes: numbers in, picture out, nothing on the screen."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

COLOURS = ("#2f6db5", "#d2642a", "#3c8d5a", "#8a4fa3", "#b5892f", "#5d6b78")
LONGEST_NAME_OF_TWO = 36  # characters that a name may have where two stand side by side in a legend


def loss_curve(
    series: Mapping[str, Sequence[tuple[int, float]]], *, title: str = "Training loss", unit: str = "loss"
) -> bytes:
    """Draw one curve per concept: every step faint, its running mean bold.

    Args:
        series: per concept, pairs (step, loss) in the order of the steps. Losses that are not finite are left out.
        title: over the picture.
        unit: what the vertical axis measures.

    Returns:
        the bytes of a PNG, 1120 x 630 pixels.
    """
    # imported here: a second of start-up that only a drawing needs
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=140, layout="constrained", facecolor="white")
    axes = figure.subplots()
    for index, (name, points) in enumerate(series.items()):
        finite = [(step, value) for step, value in points if math.isfinite(value)]
        if not finite:
            continue
        colour = COLOURS[index % len(COLOURS)]
        steps = np.array([step for step, _ in finite])
        values = np.array([value for _, value in finite], dtype=np.float64)
        axes.plot(steps, values, color=colour, alpha=0.22, linewidth=0.8)
        axes.plot(steps, running_mean(values), color=colour, linewidth=2.0, label=name)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color="#222222")
    axes.set_xlabel("step", color="#555555")
    axes.set_ylabel(unit, color="#555555")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.tick_params(colors="#555555", labelsize=9)
    axes.margins(x=0.01)
    if axes.get_legend_handles_labels()[1]:
        # under the curves, where it covers none of them
        ncols = 2 if max(map(len, series)) <= LONGEST_NAME_OF_TWO else 1
        figure.legend(loc="outside lower left", ncols=ncols, frameon=False, fontsize=10)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def running_mean(values: NDArray[np.float64], share: float = 0.1) -> NDArray[np.float64]:
    """Mean over a centred window of `share` of all values; at both ends, over what of the window there is."""
    half = max(1, round(len(values) * share / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)
