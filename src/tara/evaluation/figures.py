"""From scored pictures to figures: means with intervals, paired differences, who was taken for whom."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from tara.evaluation.scores import PictureScore
from tara.evaluation.statistics import interval, paired_difference
from tara.evaluation.subjects import Picture

Key = tuple[str, tuple[str, int | None, int], int]
"""A group of subjects; prompt, seed and which picture of these; the number of a subject in it."""

Figures = dict[str, list[float] | None]
"""[mean, low, high] by name, None where there was nothing to measure."""

ABSENT = "absent"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A picture and its score."""

    picture: Picture
    score: PictureScore


def values_of(scored: Sequence[Scored]) -> dict[str, dict[Key, float]]:
    """Every value by the figure's name; the keys of one series are those of another with the same prompts and seeds."""
    found: dict[str, dict[Key, float]] = {}
    drawn: Counter[Hashable] = Counter()
    for one in scored:
        group, prompt, seed = one.picture.group, one.picture.plain_prompt, one.picture.seed
        number = drawn[group, prompt, seed]
        drawn[group, prompt, seed] += 1
        for name, values in one.score.values().items():
            of_name = found.setdefault(name, {})
            of_name.update({(group, (prompt, seed, number), slot): value for slot, value in values.items()})
    return found


def figures(scored: Sequence[Scored]) -> Figures:
    """The mean of every figure with its 95 % interval."""
    unit = unit_of([one.picture.group for one in scored])
    return {
        name: _told(interval((unit(key), value) for key, value in values.items()))
        for name, values in values_of(scored).items()
    }


def differences(first: Sequence[Scored], second: Sequence[Scored]) -> Figures:
    """Every figure of the first series minus that of the second, over prompts and seeds that both have."""
    ours, theirs = values_of(first), values_of(second)
    unit = unit_of([one.picture.group for one in first])
    return {name: _told(paired_difference(ours[name], theirs.get(name, {}), unit)) for name in ours}


def unit_of(groups: Sequence[str]) -> Callable[[Key], Hashable]:
    """What an interval draws anew: groups of subjects, or the pictures where there is only one group."""
    return (lambda key: key[0]) if len(set(groups)) > 1 else (lambda key: key[:2])


def confusion(scored: Sequence[Scored]) -> dict[str, dict[str, int]]:
    """For each subject that was asked for: how often what stands for it looked most like which one, or was absent."""
    table: dict[str, Counter[str]] = {}
    for one in scored:
        names = [subject.name for subject in one.picture.subjects]
        for name, subject in zip(names, one.score.subjects, strict=True):
            likest = ABSENT if subject.looks_like is None else names[subject.looks_like]
            table.setdefault(name, Counter())[likest] += 1
    return {name: dict(counts) for name, counts in table.items()}


def by_series(scored: Sequence[Scored]) -> dict[str, list[Scored]]:
    """The pictures of each series, in the order of their coming."""
    found: dict[str, list[Scored]] = {}
    for one in scored:
        found.setdefault(one.picture.series, []).append(one)
    return found


def by_part(scored: Sequence[Scored]) -> dict[str, list[Scored]]:
    """All pictures under the empty name, and those of each kind of prompt when there are several kinds."""
    parts: Mapping[str, list[Scored]] = {
        name: [one for one in scored if one.picture.part == name]
        for name in dict.fromkeys(one.picture.part for one in scored)
    }
    return {"": list(scored)} | (dict(parts) if len(parts) > 1 else {})


def _told(figure: list[float]) -> list[float] | None:
    return None if math.isnan(figure[0]) else figure
