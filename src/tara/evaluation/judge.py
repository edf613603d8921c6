"""The embedded world's judge as a sight: classes and appearances read by a network that knows nothing else."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

import toyland
from tara.errors import TaraError, nearest
from tara.evaluation.scores import Box, Detections
from tara.evaluation.settings import JUDGE
from tara.evaluation.subjects import Picture, Subject
from tara.training.data.examples import read_examples
from toyland import world
from toyland.captions import PLACES
from toyland.judge import Finding, Judge, Verdict
from toyland.subjects import SAME_SUBJECT, likeness, subject_from

MEASURE = "judge"
FOR_PHOTOS = "It judges pictures of toyland only: give another --detector for photos."


class JudgeSight:
    """Compares what it finds with what it reads in the subjects' photos, which must be pictures of toyland.

    Raises:
        TaraError: when a class word is not one of toyland's, or a subject is in none of its photos.
    """

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self._judge = Judge.load(toyland.JUDGE)
        self._looks = {subject: self._read(subject) for subject in subjects}

    @property
    def models(self) -> Mapping[str, str]:
        """The judge alone."""
        return {"detector": JUDGE, "identity": "the judge's reading of colours, pattern and accessory"}

    @property
    def thresholds(self) -> Mapping[Subject, float]:
        """One for all, see `toyland.subjects.SAME_SUBJECT`."""
        return dict.fromkeys(self._looks, SAME_SUBJECT)

    def look(self, pictures: Sequence[Picture], images: Sequence[Image.Image]) -> list[Detections]:
        """See `tara.evaluation.sight.Sight`."""
        return [
            seen(verdict, [self._looks[subject] for subject in picture.subjects], picture.prompt)
            for picture, verdict in zip(pictures, self._judge(images), strict=True)
        ]

    def _read(self, subject: Subject) -> world.Subject:
        if subject.kind not in world.CLASSES:
            raise TaraError(f"The judge knows no {subject.kind}.{nearest(subject.kind, world.CLASSES)} {FOR_PHOTOS}")
        verdicts = self._judge([example.image for example in read_examples(subject.photos, ("",))])
        found = [thing for verdict in verdicts for thing in verdict.things if thing.kind == subject.kind]
        if not found:
            raise TaraError(f"The judge sees no {subject.kind} in {subject.photos}. {FOR_PHOTOS}")
        return subject_from(found)


def seen(verdict: Verdict, subjects: Sequence[world.Subject], prompt: str = "") -> Detections:
    """What a verdict says of these subjects; with a prompt that names a place, also whether that is the background."""
    things = verdict.things
    shape = len(subjects), len(things)
    likes = np.array([[likeness(thing, subject) for thing in things] for subject in subjects]).reshape(shape)
    fits = np.array([[thing.kind == subject.kind for thing in things] for subject in subjects], bool).reshape(shape)
    named = [background for background, place in PLACES.items() if place in prompt]
    return Detections(
        boxes=tuple(_box(thing) for thing in things),
        fits=fits,
        likeness={MEASURE: likes},
        thresholds=np.full(len(subjects), SAME_SUBJECT),
        whole={"background": float(verdict.background in named)} if named else {},
    )


def _box(thing: Finding) -> Box:
    return thing.x - thing.size, thing.y - thing.size, thing.x + thing.size, thing.y + thing.size
