"""Scores images and writes ``results.json``, ``results.csv`` and a report page."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from tara.evaluation import metrics
from tara.evaluation.metrics import ScoredImage
from tara.evaluation.page import evaluation_page
from tara.evaluation.scorer import SubjectScorer
from tara.evaluation.scores import WHOLE_IMAGE, score
from tara.evaluation.statistics import DIGITS
from tara.evaluation.subjects import ImageRecord, Subject
from tara.report.versions import versions
from tara.storage.files import atomic_write
from tara.storage.images import read_image


def evaluate(
    records: Sequence[ImageRecord],
    scorer: SubjectScorer,
    out: Path,
    *,
    about: Mapping[str, Any],
    batch_size: int = 8,
    on_progress: Callable[[float, str], object] = lambda done, note: None,
) -> dict[str, Any]:
    """Score images and write ``results.json``, ``results.csv`` and ``index.html`` into ``out``. Returns the results.

    Args:
        records: the images and their subjects.
        scorer: detects and compares these subjects.
        out: the folder of the results.
        about: first entries of the results: protocol, command and models.
        batch_size: images scored at a time.
        on_progress: takes the number of scored images, and an empty note.

    Raises:
        TaraError: for an image that cannot be read, or a folder that cannot be written.
    """
    scored: list[ScoredImage] = []
    for start in range(0, len(records), batch_size):
        batch = records[start : start + batch_size]
        detections = scorer(batch, [read_image(record.path) for record in batch])
        scored += [
            ScoredImage(record=record, score=score(found)) for record, found in zip(batch, detections, strict=True)
        ]
        on_progress(len(scored), "")
    content = {**about, **results(scored, scorer.thresholds, out)}
    atomic_write(out / "results.json", to_json(content, indent=1, inf_nan_mode="null"))
    atomic_write(out / "results.csv", _csv(content["images"]))
    atomic_write(out / "index.html", evaluation_page(scored, content).encode())
    return content


def results(scored: Sequence[ScoredImage], thresholds: Mapping[Subject, float], out: Path) -> dict[str, Any]:
    """The content of ``results.json``. Paths of images inside ``out`` are relative to it."""
    series = metrics.by_series(scored)
    subjects = [
        {"subject": subject.name, "photos": subject.photos.as_posix(), "threshold": round(threshold, DIGITS)}
        for subject, threshold in thresholds.items()
    ]
    differences = [
        {"first": first, "second": second, "metrics": metrics.metric_differences(series[first], series[second])}
        for first, second in combinations(series, 2)
    ]
    return {
        "versions": versions(),
        "subjects": subjects,
        "series": [_series(name, own) for name, own in series.items()],
        "differences": differences,
        "images": [_image(image, out) for image in scored],
    }


def _series(name: str, scored: Sequence[ScoredImage]) -> dict[str, Any]:
    categories = [
        {"name": category, "count": len(own), "metrics": metrics.mean_metrics(own)}
        for category, own in metrics.by_category(scored).items()
    ]
    return {**categories[0], "name": name, "categories": categories[1:], "confusion": metrics.confusion(scored)}


def _image(scored: ScoredImage, out: Path) -> dict[str, Any]:
    path, folder = scored.record.path.absolute(), out.absolute()
    file = path.relative_to(folder) if path.is_relative_to(folder) else scored.record.path
    names = [subject.name for subject in scored.record.subjects]
    of_subjects = {metric: of for metric, of in scored.score.values().items() if WHOLE_IMAGE not in of}
    return {
        "series": scored.record.series,
        "file": file.as_posix(),
        "prompt": scored.record.prompt,
        "seed": scored.record.seed,
        "group": scored.record.group,
        "category": scored.record.category,
        "success": scored.score.success,
        **scored.score.image_metrics,
        "subjects": [
            {
                "subject": name,
                "correct": score.correct,
                "most_similar": None if score.most_similar is None else names[score.most_similar],
                "box": score.box,
                **{metric: of.get(index) for metric, of in of_subjects.items()},
            }
            for index, (name, score) in enumerate(zip(names, scored.score.subjects, strict=True))
        ],
    }


def _csv(images: Sequence[dict[str, Any]]) -> bytes:
    """A CSV file with a row per subject of each image. Values that do not apply are empty."""
    rows = [image | subject for image in images for subject in image["subjects"]]
    names = dict.fromkeys(name for row in rows for name in row if name not in ("subjects", "box"))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(names), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
