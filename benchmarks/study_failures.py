"""Where composition fails: the judge's findings in failed images, grouped by cause, and the worst of these images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from toyland_cast import Group, Member, Outcome

from tara.report.grid import Grid, Row
from tara.report.sheet import contact_sheet
from toyland.judge import Finding
from toyland.render import SIZE
from toyland.subjects import features

CAUSES = {
    "missing": "there are fewer things than subjects: layout, before any adapter",
    "wrong class": "another thing stands in its place: layout, or a value that carries a class",
    "swapped": "it looks most like another subject of the prompt: keys that find the wrong place",
    "blended": "some of its features are another subject's: attention that is shared",
    "unlike itself": "its own features are wrong, and nobody's in the prompt: what the adapter or base can generate",
}
"""What can be wrong with a subject, the gravest first, and what that points to."""
WORST = 24
COLUMNS = 6
HALF = 0.5  # above it a feature is the subject's
ZOOM = 3


@dataclass(frozen=True, kw_only=True)
class Failures:
    """How many subjects fail by which cause, and the worst images on a sheet."""

    causes: dict[str, Any]
    shown: int
    sheet: Image.Image


def failures(members: Sequence[Member], outcomes: Sequence[Outcome], images: Sequence[Image.Image]) -> Failures:
    """The causes of failure in images of two or three subjects."""
    failed = [(one, image) for one, image in zip(outcomes, images, strict=True) if not one.score.success]
    worst = sorted(failed, key=lambda pair: _quality(pair[0]))[:WORST]
    causes: dict[str, Any] = {"meaning": CAUSES}
    for name, subjects in (("pairs", 2), ("triples", 3)):
        own = [one for one, _ in failed if len(one.group) == subjects]
        of = sum(len(one.group) == subjects for one in outcomes)
        causes[name] = {"pictures": of, "failed": len(own), "subjects_by_cause": _counted(own, members)}
    return Failures(causes=causes, shown=len(worst), sheet=contact_sheet(_by_cause(worst, members)))


def _by_cause(worst: Sequence[tuple[Outcome, Image.Image]], members: Sequence[Member]) -> Grid:
    """Images under the gravest cause in each, with the judge's reading of every subject."""
    rows: list[Row] = []
    for cause in CAUSES:
        own = [(one, image) for one, image in worst if _gravest(one, members) == cause]
        for start in range(0, len(own), COLUMNS):
            part = own[start : start + COLUMNS]
            images = tuple(beside_photos(image, [members[i] for i in one.group]) for one, image in part)
            captions = tuple(_reading(one, members) for one, _ in part)
            rows.append(Row(label="" if start else cause, images=images, captions=captions))
    return Grid(rows=tuple(rows))


def _gravest(outcome: Outcome, members: Sequence[Member]) -> str:
    causes = causes_of(outcome, members)
    return next(cause for cause in CAUSES if cause in causes)


def _counted(failed: Sequence[Outcome], members: Sequence[Member]) -> dict[str, int]:
    counts = Counter(cause for one in failed for cause in causes_of(one, members) if cause)
    return {cause: counts[cause] for cause in CAUSES}


def causes_of(outcome: Outcome, members: Sequence[Member]) -> list[str | None]:
    """What is wrong with each subject of an image; None for one that is present and correct."""
    things, scored = outcome.verdict.things, outcome.score.subjects
    causes: list[str | None] = []
    for number, subject in enumerate(scored):
        if subject.correct:
            causes.append(None)
        elif subject.box is None:
            causes.append("missing" if len(things) < len(scored) else "wrong class")
        elif subject.most_similar != number:
            causes.append("swapped")
        else:
            thing = next(one for one in things if (one.x - one.size, one.y - one.size) == subject.box[:2])
            causes.append("blended" if _blended(thing, outcome.group, number, members) else "unlike itself")
    return causes


def _blended(thing: Finding, group: Group, number: int, members: Sequence[Member]) -> list[str]:
    """The features that are another subject's and not its own."""
    own = features(thing, members[group[number]].subject)
    others = [features(thing, members[i].subject) for place, i in enumerate(group) if place != number]
    return [name for name, like in own.items() if like < HALF and any(other.get(name, 0) > HALF for other in others)]


def _quality(outcome: Outcome) -> float:
    values = outcome.score.values()["identity_absent_zero"].values()
    return sum(values) / len(values)


def _reading(outcome: Outcome, members: Sequence[Member]) -> str:
    texts: list[str] = []
    for i, cause, subject in zip(outcome.group, causes_of(outcome, members), outcome.score.subjects, strict=True):
        like = "" if subject.box is None else f" {next(iter(subject.identity.values())):.2f}"
        texts.append(f"{members[i].subject.kind}{like}: {cause or 'right'}")
    return "; ".join(texts)


def beside_photos(image: Image.Image, members: Sequence[Member]) -> Image.Image:
    """An image, enlarged without smoothing, with a photo of each subject to its right."""
    side = SIZE * ZOOM
    small = side // 3
    sheet = Image.new("RGB", (side + small, side), "white")
    sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (0, 0))
    for row, member in enumerate(members):
        with Image.open(sorted(member.photos.glob("*.png"))[0]) as photo:
            sheet.paste(photo.convert("RGB").resize((small, small), Image.Resampling.NEAREST), (side, row * small))
    return sheet
