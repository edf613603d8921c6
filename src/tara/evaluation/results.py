"""What an evaluation leaves for other programs: `results.json` and `results.csv`."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from tara.evaluation.figures import Scored, by_part, by_series, confusion, differences, figures
from tara.evaluation.scores import WHOLE
from tara.evaluation.statistics import DIGITS
from tara.evaluation.subjects import SAME_CLASS, Subject
from tara.training.run.folder import versions


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """How the figures came about."""

    protocol: str
    command: str
    models: Mapping[str, str]
    thresholds: Mapping[Subject, float]
    """The least likeness that counts as each subject."""


def results(scored: Sequence[Scored], how: RunInfo, out: Path) -> dict[str, Any]:
    """Everything that ``results.json`` holds; pictures are named as seen from the folder ``out``."""
    series = by_series(scored)
    return {
        "protocol": how.protocol,
        "command": how.command,
        "models": dict(how.models),
        "versions": versions(),
        "subjects": [
            {
                "rare_word": one.rare_word,
                "class_word": one.class_word,
                "photos": one.photos.as_posix(),
                "threshold": round(threshold, DIGITS),
            }
            for one, threshold in how.thresholds.items()
        ],
        "series": [_series(name, pictures) for name, pictures in series.items()],
        "differences": [
            {"first": first, "second": second, "figures": differences(series[first], series[second])}
            for first, second in combinations(series, 2)
        ],
        "pictures": [_picture(one, out) for one in scored],
    }


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """The content of ``results.json``."""
    return (json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def csv_bytes(scored: Sequence[Scored], out: Path) -> bytes:
    """The content of ``results.csv``: a row for each subject of each picture; what does not apply is left empty."""
    rows = [row for one in scored for row in _rows(one, out)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _series(name: str, scored: Sequence[Scored]) -> dict[str, Any]:
    parts = by_part(scored)
    return {
        "name": name,
        "images": len(scored),
        "figures": figures(scored),
        "parts": [
            {"name": part, "images": len(some), "figures": figures(some)} for part, some in parts.items() if part
        ],
        "confusion": confusion(scored),
    }


def _picture(one: Scored, out: Path) -> dict[str, Any]:
    return {
        "file": place_of(one.picture.path, out),
        "series": one.picture.series,
        "prompt": one.picture.prompt,
        "seed": one.picture.seed,
        "success": one.score.success,
        "whole": dict(one.score.whole),
        "subjects": [
            {
                "name": subject.name,
                "present": score.present,
                "right": score.right,
                "box": score.box,
                "identity": dict(score.identity),
                "leakage": dict(score.leakage),
                "looks_like": None if score.looks_like is None else one.picture.subjects[score.looks_like].name,
            }
            for subject, score in zip(one.picture.subjects, one.score.subjects, strict=True)
        ],
    }


def _rows(one: Scored, out: Path) -> list[dict[str, Any]]:
    picture = {
        "series": one.picture.series,
        "file": place_of(one.picture.path, out),
        "prompt": one.picture.prompt,
        "seed": "" if one.picture.seed is None else one.picture.seed,
        "group": one.picture.group,
        "same_class": int(one.picture.part == SAME_CLASS),
        "success": int(one.score.success),
    }
    of_subjects = {name: of for name, of in one.score.values().items() if WHOLE not in of}
    rows: list[dict[str, Any]] = []
    for number, (subject, score) in enumerate(zip(one.picture.subjects, one.score.subjects, strict=True)):
        own = {
            "subject": subject.name,
            "right": int(score.right),
            "looks_like": "" if score.looks_like is None else one.picture.subjects[score.looks_like].name,
        }
        rows.append(
            picture | own | {name: of.get(number, "") for name, of in of_subjects.items()} | dict(one.score.whole)
        )
    return rows


def place_of(path: Path, out: Path) -> str:
    """A file as seen from the output folder, or as it was given when it lies elsewhere."""
    inside = path.absolute().is_relative_to(out.absolute())
    return (path.absolute().relative_to(out.absolute()) if inside else path).as_posix()
