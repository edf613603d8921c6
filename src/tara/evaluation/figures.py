"""From scored pictures to figures: means with intervals, paired differences, who was taken for whom."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tara.evaluation.scores import WHOLE, PictureScore
from tara.evaluation.statistics import interval, paired_difference
from tara.evaluation.subjects import Picture

Shot = tuple[str, str, int | None, int]
"""What pictures of several series share: a group of subjects, prompt, seed, and which picture of these."""

Key = tuple[Shot, str]
"""A picture and a subject in it by name; the empty name for a value of the whole picture."""

Figures = dict[str, list[float] | None]
"""[mean, low, high] by name, None where there was nothing to measure."""

ABSENT = "absent"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A picture and its score."""

    picture: Picture
    score: PictureScore


def shots(scored: Sequence[Scored]) -> Iterator[tuple[Shot, Scored]]:
    """Each picture of a series with what names it; another series' picture of that name is its counterpart."""
    drawn: Counter[Hashable] = Counter()
    for one in scored:
        shot = one.picture.group, one.picture.prompt, one.picture.seed
        yield (*shot, drawn[shot]), one
        drawn[shot] += 1


def values_of(scored: Sequence[Scored]) -> dict[str, dict[Key, float]]:
    """Every value by the figure's name; the keys of one series are those of another with the same prompts and seeds."""
    found: dict[str, dict[Key, float]] = {}
    for shot, one in shots(scored):
        names = {number: subject.name for number, subject in enumerate(one.picture.subjects)} | {WHOLE: ""}
        for name, values in one.score.values().items():
            found.setdefault(name, {}).update({(shot, names[number]): value for number, value in values.items()})
    return found


def figures(scored: Sequence[Scored]) -> Figures:
    """The mean of every figure with its 95 % interval."""
    found: Figures = {}
    for name, values in values_of(scored).items():
        unit = unit_of(values)
        found[name] = _told(interval((unit(key), value) for key, value in values.items()))
    return found


def differences(first: Sequence[Scored], second: Sequence[Scored]) -> Figures:
    """Every figure of the first series minus that of the second, over prompts and seeds that both have."""
    ours, theirs = values_of(first), values_of(second)
    found: Figures = {}
    for name, values in ours.items():
        others = theirs.get(name, {})
        found[name] = _told(paired_difference(values, others, unit_of(values.keys() & others.keys())))
    return found


def unit_of(keys: Iterable[Key]) -> Callable[[Key], Hashable]:
    """What an interval over values draws anew: groups of subjects, or the pictures where all are of one group."""
    groups = {group for (group, *_), _ in keys}
    return (lambda key: key[0][0]) if len(groups) > 1 else (lambda key: key[0])


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
