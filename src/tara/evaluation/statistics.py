"""Means with bootstrap confidence intervals, and paired differences."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)

RESAMPLES = 4000
DIGITS = 4


def interval(values: Iterable[tuple[Hashable, float]], resamples: int = RESAMPLES, seed: int = 0) -> list[float]:
    """[mean, low, high]: a 95 % percentile bootstrap (Efron 1979) over clusters.

    Args:
        values: (cluster, value). The values of one cluster, such as the images of one pair of subjects, are not
            independent of each other, so whole clusters are resampled.
        resamples: how often as many clusters as there are get resampled with replacement.
        seed: of the resampling.

    Returns:
        three numbers, rounded; NaN when there are no values.
    """
    clusters: dict[Hashable, list[float]] = {}
    for cluster, value in values:
        clusters.setdefault(cluster, []).append(value)
    if not clusters:
        return [float("nan")] * 3
    sums = np.array([[sum(of), len(of)] for of in clusters.values()])
    chosen = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
    totals = sums[chosen].sum(1)
    low, high = np.percentile(totals[:, 0] / totals[:, 1], [2.5, 97.5])
    return [round(float(x), DIGITS) for x in (sums[:, 0].sum() / sums[:, 1].sum(), low, high)]


def paired_difference(
    first: Mapping[Key, float], second: Mapping[Key, float], cluster: Callable[[Key], Hashable]
) -> list[float]:
    """[mean, low, high] of first minus second, over the keys (the same prompt and seed) that both have."""
    return interval((cluster(key), value - second[key]) for key, value in first.items() if key in second)


def format_ci(metric: tuple[float, ...] | list[float]) -> str:
    """A mean with its interval, for a table: ``0.50 [0.25, 1.00]``."""
    mean, low, high = metric
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"
