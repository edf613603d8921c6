"""Verdicts as an unerring judge would make them."""

from toyland.judge import Verdict
from toyland.subjects import unerring_finding
from toyland.world import Scene, Subject


def verdict_of(*subjects: Subject) -> Verdict:
    """What an unerring judge sees of an image with these subjects side by side."""
    things = tuple(unerring_finding(subject, (index + 0.5) / len(subjects)) for index, subject in enumerate(subjects))
    return Verdict(things=things, background="beach", style="none")


def reading_of(scene: Scene) -> Verdict:
    """What an unerring judge sees of a scene."""
    things = tuple(unerring_finding(Subject(kind=t.kind, look=t.look), t.x, y=t.y, size=t.size) for t in scene.things)
    return Verdict(things=things, background=scene.background, style=scene.style)
