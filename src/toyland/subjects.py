"""Subjects as people meet them: pictures to learn from, and how like a subject the judge finds what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from toyland.judge import Finding, Verdict
from toyland.render import render
from toyland.world import ACCESSORIES, BACKGROUNDS, CLASSES, PATTERNS, Appearance, Rgb, Subject, place, random_subject

SAME_SUBJECT = 0.66
"""Least likeness that counts as this subject: half-way between what 5 % of other subjects of its class reach (0.42)
and what 95 % of a subject's re-renders reach (0.91). In words: about one of five features may be wrong.
`benchmarks/base_toyland.py` measures both shares, and a test holds them."""

COLOR_TOLERANCE = 70.0
"""Distance of two colours, in units of 1/255, at which their likeness has fallen to 1/e."""


def reference_pictures(subject: Subject, seed: int, count: int = 5) -> list[Image.Image]:
    """Pictures of one subject alone, each before another background, as training photos."""
    rng = np.random.default_rng(seed)
    backgrounds = rng.permutation(len(BACKGROUNDS))
    return [
        render(
            place(
                rng, [subject], background=BACKGROUNDS[backgrounds[i % len(BACKGROUNDS)]], seed=int(rng.integers(2**31))
            )
        )
        for i in range(count)
    ]


def draw_subjects(seed: int, kinds: Sequence[str]) -> list[Subject]:
    """One random subject per named class; subjects of one class differ clearly from each other."""
    rng = np.random.default_rng(seed)
    subjects: list[Subject] = []
    for kind in kinds:
        while True:
            subject = random_subject(rng, kind)
            if all(other.kind != kind or resemblance(other, subject) < 0.5 for other in subjects):
                subjects.append(subject)
                break
    return subjects


def subject_from(findings: Sequence[Finding]) -> Subject:
    """The subject that findings of several of its pictures agree on: median colours, likeliest everything else."""
    means = {
        name: np.mean([getattr(finding, name) for finding in findings], axis=0)
        for name in ("kinds", "patterns", "accessories")
    }
    body, second, third = (_median(findings, name) for name in ("body", "second", "third"))
    look = Appearance(
        body=body,
        second=second,
        third=third,
        pattern=PATTERNS[int(np.argmax(means["patterns"]))],
        accessory=ACCESSORIES[int(np.argmax(means["accessories"]))],
    )
    return Subject(kind=CLASSES[int(np.argmax(means["kinds"]))], look=look)


def _median(findings: Sequence[Finding], color: str) -> Rgb:
    red, green, blue = np.median([getattr(finding, color) for finding in findings], axis=0).round().astype(int).tolist()
    return red, green, blue


def _color_likeness(seen: Rgb, wanted: Rgb) -> float:
    return float(np.exp(-sum((a - b) ** 2 for a, b in zip(seen, wanted, strict=True)) / COLOR_TOLERANCE**2))


def features(seen: Finding, subject: Subject) -> dict[str, float]:
    """How like the subject's a finding's colours, pattern and accessory are, 0 to 1 each; class not counted."""
    look = subject.look
    found = {
        "body": _color_likeness(seen.body, look.body),
        "second colour": _color_likeness(seen.second, look.second),
        "pattern": seen.patterns[PATTERNS.index(look.pattern)],
        "accessory": seen.accessories[ACCESSORIES.index(look.accessory)],
    }
    return found if look.accessory == "none" else found | {"third colour": _color_likeness(seen.third, look.third)}


def likeness(seen: Finding, subject: Subject) -> float:
    """How like the subject a finding looks, 0 to 1: the mean of its :func:`features`."""
    return float(np.mean(list(features(seen, subject).values())))


def detections(verdict: Verdict, subjects: Sequence[Subject]) -> dict[str, Any]:
    """What the judge finds in one image, compared with the subjects that it should show, as plain arrays.

    Returns:
        ``boxes``: left, top, right, bottom of each finding, as fractions of the sides; ``class_match`` (subjects,
        findings): whether a finding is of a subject's class; ``similarity``: {"judge": `likeness` (subjects, findings)};
        ``thresholds`` (subjects,): :data:`SAME_SUBJECT`.
    """
    things, shape = verdict.things, (len(subjects), len(verdict.things))
    similarity = [[likeness(thing, subject) for thing in things] for subject in subjects]
    class_match = [[thing.kind == subject.kind for thing in things] for subject in subjects]
    return {
        "boxes": tuple((one.x - one.size, one.y - one.size, one.x + one.size, one.y + one.size) for one in things),
        "class_match": np.array(class_match, dtype=bool).reshape(shape),
        "similarity": {"judge": np.array(similarity, dtype=float).reshape(shape)},
        "thresholds": np.full(len(subjects), SAME_SUBJECT),
    }


def unerring_finding(
    subject: Subject, x: float = 0.5, confidence: float = 1.0, y: float = 0.6, size: float = 0.2
) -> Finding:
    """What a judge without error finds of a subject."""
    look = subject.look
    return Finding(
        x=x,
        y=y,
        size=size,
        confidence=confidence,
        kinds=tuple(float(kind == subject.kind) for kind in CLASSES),
        body=look.body,
        second=look.second,
        third=look.third,
        patterns=tuple(float(pattern == look.pattern) for pattern in PATTERNS),
        accessories=tuple(float(accessory == look.accessory) for accessory in ACCESSORIES),
    )


def resemblance(first: Subject, second: Subject) -> float:
    """How alike two subjects look, on the scale of `likeness`, if a judge reads both without error."""
    return likeness(unerring_finding(first), second)
