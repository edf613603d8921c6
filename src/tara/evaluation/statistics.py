"""Honest intervals: means with the range that other draws of the same kind would have given."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)

DRAWS = 4000
DIGITS = 4


def interval(values: Iterable[tuple[Hashable, float]], draws: int = DRAWS, seed: int = 0) -> list[float]:
    """[mean, low, high]: a 95 % percentile bootstrap (Efron 1979) over units.

    Args:
        values: (unit, value). What belongs to one unit, such as the pictures of one pair of subjects, is not
            independent of each other, so units are drawn whole.
        draws: how often the units are drawn anew, with replacement, as many as there are.
        seed: of those draws.

    Returns:
        three numbers, rounded; NaN when there are no values.
    """
    units: dict[Hashable, list[float]] = {}
    for unit, value in values:
        units.setdefault(unit, []).append(value)
    if not units:
        return [float("nan")] * 3
    sums = np.array([[sum(of), len(of)] for of in units.values()])
    chosen = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    totals = sums[chosen].sum(1)
    low, high = np.percentile(totals[:, 0] / totals[:, 1], [2.5, 97.5])
    return [round(float(x), DIGITS) for x in (sums[:, 0].sum() / sums[:, 1].sum(), low, high)]


def paired_difference(
    first: Mapping[Key, float], second: Mapping[Key, float], unit: Callable[[Key], Hashable]
) -> list[float]:
    """[mean, low, high] of first minus second, over the keys (the same prompt and seed) that both have."""
    return interval((unit(key), value - second[key]) for key, value in first.items() if key in second)


def format_ci(figure: tuple[float, ...] | list[float]) -> str:
    """A mean with its interval, for a table."""
    mean, low, high = figure
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"
