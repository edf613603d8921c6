"""Findings as an unerring judge would make them."""

from toyland.judge import Finding, Verdict
from toyland.world import ACCESSORIES, CLASSES, PATTERNS, Scene, Subject


def seen(subject: Subject, x: float = 0.5, confidence: float = 1.0, y: float = 0.6, size: float = 0.2) -> Finding:
    """What an unerring judge sees of a subject."""
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


def picture_of(*subjects: Subject) -> Verdict:
    """What an unerring judge sees of a picture with these subjects side by side."""
    things = tuple(seen(subject, (index + 0.5) / len(subjects)) for index, subject in enumerate(subjects))
    return Verdict(things=things, background="beach", style="none")


def reading_of(scene: Scene) -> Verdict:
    """What an unerring judge sees of a scene."""
    things = tuple(seen(Subject(kind=t.kind, look=t.look), t.x, y=t.y, size=t.size) for t in scene.things)
    return Verdict(things=things, background=scene.background, style=scene.style)
