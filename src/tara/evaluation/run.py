"""Pictures to figures: look, score, write the page and the tables."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tara.evaluation.figures import Scored
from tara.evaluation.page import evaluation_page
from tara.evaluation.results import RunInfo, csv_bytes, json_bytes, results
from tara.evaluation.scorer import SubjectScorer
from tara.evaluation.scores import score
from tara.evaluation.subjects import Picture
from tara.storage.files import atomic_write
from tara.storage.images import read_image

Tell = Callable[[float, str], object]
"""Told how many pictures are done, and what is going on."""


def evaluate(
    pictures: Sequence[Picture],
    scorer: SubjectScorer,
    out: Path,
    how: RunInfo,
    *,
    batch_size: int = 8,
    tell: Tell = lambda done, what: None,
) -> dict[str, Any]:
    """Score pictures and write ``results.json``, ``results.csv`` and ``index.html`` into a folder.

    Args:
        pictures: what to score.
        sight: what finds the subjects and tells them apart.
        out: the folder.
        how: what the files say of how the figures came about.
        batch_size: pictures looked at together.
        tell: for progress bars.

    Returns:
        what ``results.json`` holds.

    Raises:
        TaraError: for a picture that cannot be read, or a folder that cannot be written.
    """
    scored: list[Scored] = []
    for start in range(0, len(pictures), batch_size):
        some = pictures[start : start + batch_size]
        seen = scorer.look(some, [read_image(picture.path) for picture in some])
        scored += [Scored(picture=picture, score=score(one)) for picture, one in zip(some, seen, strict=True)]
        tell(len(scored), "")
    found = results(scored, how, out)
    atomic_write(out / "results.json", json_bytes(found))
    atomic_write(out / "results.csv", csv_bytes(scored, out))
    atomic_write(out / "index.html", evaluation_page(scored, how).encode())
    return found
