"""Metrics from the scores of images: means with intervals, paired differences, confusion counts."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tara.evaluation.scores import WHOLE_IMAGE, ImageScore
from tara.evaluation.statistics import interval, paired_difference
from tara.evaluation.subjects import ImageRecord

# identifies an image within its series: group, prompt, seed, and a number among images that share these
ImageKey = tuple[str, str, int | None, int]
Key = tuple[ImageKey, str]  # an image and the name of one of its subjects; empty for a metric of the whole image
Metrics = dict[str, list[float]]  # [mean, low, high] by name; a metric without values is left out
ABSENT = "absent"


@dataclass(frozen=True, kw_only=True)
class ScoredImage:
    """An image and its score."""

    record: ImageRecord
    score: ImageScore


def keyed(scored: Sequence[ScoredImage]) -> Iterator[tuple[ImageKey, ScoredImage]]:
    """Each image of a series with its key."""
    counts: Counter[Hashable] = Counter()
    for image in scored:
        key = image.record.group, image.record.prompt, image.record.seed
        yield (*key, counts[key]), image
        counts[key] += 1


def mean_metrics(scored: Sequence[ScoredImage]) -> Metrics:
    """The mean of every metric with its 95 % interval."""
    means: Metrics = {}
    for metric, values in _values_by_metric(scored).items():
        if values:
            cluster = _clusters(values)
            means[metric] = interval((cluster(key), value) for key, value in values.items())
    return means


def metric_differences(first: Sequence[ScoredImage], second: Sequence[ScoredImage]) -> Metrics:
    """Every metric of the first series minus that of the second, over the prompts and seeds of both."""
    theirs = _values_by_metric(second)
    differences: Metrics = {}
    for metric, values in _values_by_metric(first).items():
        others = theirs.get(metric, {})
        if shared := values.keys() & others.keys():
            differences[metric] = paired_difference(values, others, _clusters(shared))
    return differences


def confusion(scored: Sequence[ScoredImage]) -> dict[str, dict[str, int]]:
    """For each subject, how often its detection was most similar to each subject of the prompt, or was absent."""
    table: dict[str, Counter[str]] = {}
    for image in scored:
        names = [subject.name for subject in image.record.subjects]
        for name, subject in zip(names, image.score.subjects, strict=True):
            predicted = ABSENT if subject.most_similar is None else names[subject.most_similar]
            table.setdefault(name, Counter())[predicted] += 1
    return {name: dict(counts) for name, counts in table.items()}


def by_series(scored: Sequence[ScoredImage]) -> dict[str, list[ScoredImage]]:
    """The images of each series, in order of appearance."""
    series = dict.fromkeys(image.record.series for image in scored)
    return {name: [image for image in scored if image.record.series == name] for name in series}


def by_category(scored: Sequence[ScoredImage]) -> dict[str, list[ScoredImage]]:
    """All images under the empty name and, if there are several categories, the images of each category."""
    categories = dict.fromkeys(image.record.category for image in scored)
    parts = {name: [image for image in scored if image.record.category == name] for name in categories}
    return {"": list(scored)} | (parts if len(parts) > 1 else {})


def _values_by_metric(scored: Sequence[ScoredImage]) -> dict[str, dict[Key, float]]:
    metrics: dict[str, dict[Key, float]] = {}
    for key, image in keyed(scored):
        names = {WHOLE_IMAGE: ""} | dict(enumerate(subject.name for subject in image.record.subjects))
        for metric, values in image.score.values().items():
            metrics.setdefault(metric, {}).update({(key, names[index]): value for index, value in values.items()})
    return metrics


def _clusters(keys: Iterable[Key]) -> Callable[[Key], Hashable]:
    """The clusters that the bootstrap resamples: groups of subjects, or images if there is only one group."""
    groups = {group for (group, *_), _ in keys}
    return (lambda key: key[0][0]) if len(groups) > 1 else (lambda key: key[0])
