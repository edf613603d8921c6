"""Where composition still fails: what the judge says of failed pictures, grouped by cause, and the worst of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from toyland_cast import Group, Member, Outcome

from tara.report.page import Grid, Row, contact_sheet
from toyland.judge import Finding
from toyland.render import SIZE
from toyland.subjects import features

CAUSES = {
    "missing": "there are fewer things than subjects: layout, before any adapter",
    "wrong class": "another thing stands in its place: layout, or a value that carries a class",
    "swapped": "it looks most like another subject of the prompt: keys that find the wrong place",
    "blended": "some of its features are another subject's: attention that is shared",
    "unlike itself": "its own features are wrong, and nobody's in the prompt: what the adapter or the base can draw",
}
"""What can be the matter with a subject, the gravest first, and what that points to."""
WORST = 24
COLUMNS = 6
HALF = 0.5  # a feature is another's, or not its own, on this side of it
ZOOM = 3


@dataclass(frozen=True, kw_only=True)
class Failures:
    """How many subjects fail by which cause, and the worst pictures on a sheet."""

    causes: dict[str, Any]
    shown: int
    sheet: Image.Image


def failures(members: Sequence[Member], drawn: Sequence[Outcome], images: Sequence[Image.Image]) -> Failures:
    """Of pictures of two or three subjects, what is the matter with those that fail."""
    failed = [(one, image) for one, image in zip(drawn, images, strict=True) if not one.score.success]
    worst = sorted(failed, key=lambda pair: _quality(pair[0]))[:WORST]
    causes: dict[str, Any] = {"meaning": CAUSES}
    for name, subjects in (("pairs", 2), ("triples", 3)):
        own = [one for one, _ in failed if len(one.group) == subjects]
        of = sum(len(one.group) == subjects for one in drawn)
        causes[name] = {"pictures": of, "failed": len(own), "subjects_by_cause": _counted(own, members)}
    return Failures(causes=causes, shown=len(worst), sheet=contact_sheet(_by_cause(worst, members)))


def _by_cause(worst: Sequence[tuple[Outcome, Image.Image]], members: Sequence[Member]) -> Grid:
    """Pictures under the gravest cause in each, with what the judge says of every subject."""
    rows: list[Row] = []
    for cause in CAUSES:
        own = [(one, image) for one, image in worst if _gravest(one, members) == cause]
        for start in range(0, len(own), COLUMNS):
            some = own[start : start + COLUMNS]
            images = tuple(_beside_photos(image, [members[i] for i in one.group]) for one, image in some)
            captions = tuple(_said(one, members) for one, _ in some)
            rows.append(Row(label="" if start else cause, images=images, captions=captions))
    return Grid(rows=tuple(rows))


def _gravest(outcome: Outcome, members: Sequence[Member]) -> str:
    found = causes_of(outcome, members)
    return next(cause for cause in CAUSES if cause in found)


def _counted(failed: Sequence[Outcome], members: Sequence[Member]) -> dict[str, int]:
    found = Counter(cause for one in failed for cause in causes_of(one, members) if cause)
    return {cause: found[cause] for cause in CAUSES}


def causes_of(outcome: Outcome, members: Sequence[Member]) -> list[str | None]:
    """What is the matter with each subject of a picture; None for one that is there and right."""
    things, scored = outcome.verdict.things, outcome.score.subjects
    found: list[str | None] = []
    for number, subject in enumerate(scored):
        if subject.right:
            found.append(None)
        elif subject.box is None:
            found.append("missing" if len(things) < len(scored) else "wrong class")
        elif subject.looks_like != number:
            found.append("swapped")
        else:
            thing = next(one for one in things if (one.x - one.size, one.y - one.size) == subject.box[:2])
            found.append("blended" if _patched(thing, outcome.group, number, members) else "unlike itself")
    return found


def _patched(thing: Finding, group: Group, number: int, members: Sequence[Member]) -> list[str]:
    """The features that are another subject's and not its own."""
    own = features(thing, members[group[number]].subject)
    others = [features(thing, members[i].subject) for place, i in enumerate(group) if place != number]
    return [name for name, like in own.items() if like < HALF and any(other.get(name, 0) > HALF for other in others)]


def _quality(outcome: Outcome) -> float:
    values = outcome.score.values()["identity_absent_zero"].values()
    return sum(values) / len(values)


def _said(outcome: Outcome, members: Sequence[Member]) -> str:
    told: list[str] = []
    for i, cause, subject in zip(outcome.group, causes_of(outcome, members), outcome.score.subjects, strict=True):
        like = "" if subject.box is None else f" {next(iter(subject.identity.values())):.2f}"
        told.append(f"{members[i].subject.kind}{like}: {cause or 'right'}")
    return "; ".join(told)


def _beside_photos(image: Image.Image, members: Sequence[Member]) -> Image.Image:
    """A picture, enlarged without smoothing, with a photo of each subject to its right."""
    side = SIZE * ZOOM
    small = side // 3
    sheet = Image.new("RGB", (side + small, side), "white")
    sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (0, 0))
    for row, member in enumerate(members):
        with Image.open(sorted(member.photos.glob("*.png"))[0]) as photo:
            sheet.paste(photo.convert("RGB").resize((small, small), Image.Resampling.NEAREST), (side, row * small))
    return sheet
