"""Plots as PNG."""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

COLOURS = ("#2f6db5", "#d2642a", "#3c8d5a", "#8a4fa3", "#b5892f", "#5d6b78")
LONGEST_OF_TWO = 36  # longest name, in characters, for a legend with two columns


def loss_curve(series: Mapping[str, Sequence[tuple[int, float]]]) -> bytes:
    """Plot the pairs (step, loss) of each name, steps faint and the running mean bold, as a PNG of 1120 x 630 pixels.

    Losses that are not finite are left out.
    """
    from matplotlib.figure import Figure  # imported here, because the import takes a second

    figure = Figure(figsize=(8, 4.5), dpi=140, layout="constrained", facecolor="white")
    axes = figure.subplots()
    for index, (name, points) in enumerate(series.items()):
        finite = np.array([point for point in points if math.isfinite(point[1])], dtype=np.float64)
        if len(finite):
            steps, values = finite.T
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(steps, values, color=colour, alpha=0.22, linewidth=0.8)
            axes.plot(steps, running_mean(values), color=colour, linewidth=2.0, label=name)
    axes.set_title("Training loss", loc="left", fontsize=12, fontweight="bold", color="#222222")
    axes.set_xlabel("step", color="#555555")
    axes.set_ylabel("loss", color="#555555")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.tick_params(colors="#555555", labelsize=9)
    axes.margins(x=0.01)
    if axes.get_legend_handles_labels()[1]:
        columns = 2 if max(map(len, series)) <= LONGEST_OF_TWO else 1
        figure.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=10)  # below the curves
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def running_mean(values: NDArray[np.float64], share: float = 0.1) -> NDArray[np.float64]:
    """Mean over a centred window of ``share`` of all values. At both ends, the window is cut off."""
    half = max(1, round(len(values) * share / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)
