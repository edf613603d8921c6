"""Means with bootstrap confidence intervals, and paired differences."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)

RESAMPLES = 4000
FEWEST_CLUSTERS = 5  # with fewer clusters, intervals are too narrow: two successes would have [1.00, 1.00]
DIGITS = 4


def interval(values: Iterable[tuple[Hashable, float]], resamples: int = RESAMPLES, seed: int = 0) -> list[float]:
    """[mean, low, high] of (cluster, value), rounded: a 95 % percentile bootstrap (Efron 1979) over clusters.

    Whole clusters, such as the images of one pair of subjects, are resampled with replacement, because their values are
    not independent of each other. With fewer than five clusters the bounds are NaN; without values, the mean is too.
    """
    clusters: dict[Hashable, list[float]] = {}
    for cluster, value in values:
        clusters.setdefault(cluster, []).append(value)
    if not clusters:
        return [float("nan")] * 3
    if len(clusters) < FEWEST_CLUSTERS:
        mean = float(np.mean([value for cluster in clusters.values() for value in cluster]))
        return [round(mean, DIGITS), float("nan"), float("nan")]
    sums = np.array([[sum(cluster), len(cluster)] for cluster in clusters.values()])
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
    """A mean and its interval as text, ``0.50 [0.25, 1.00]``; the mean alone if the bounds are NaN."""
    mean, low, high = metric
    return f"{mean:.2f}" if math.isnan(low) else f"{mean:.2f} [{low:.2f}, {high:.2f}]"
