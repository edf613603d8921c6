"""Subjects in photos and drawings of any kind: a detector finds their class, encoders tell who they are."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image

from tara.evaluation.boxes import WHOLE_PICTURE, crop, non_maximum_suppression
from tara.evaluation.features import FeatureCache
from tara.evaluation.models import Models
from tara.evaluation.scores import Box, Detections
from tara.evaluation.subjects import Picture, Subject
from tara.evaluation.whole import WholePictures, mean_cosine
from tara.training.data.examples import read_examples

Vectors = NDArray[np.float32]
Finding = tuple[Box, str]
"""Where something is, and its class word."""


class DetectorScorer:
    """Finds each class by its word, crops what it finds, and compares the crops with crops of the subjects' photos.

    Args:
        models: the detector and the encoders; DINO says who is who, CLIP sees the kind of thing better than the
            individual.
        subjects: everybody, with the folders of their photos.
        features: what the models made of pictures before.
        same_subject: the least likeness that counts as the subject; see `thresholds` when None.

    Raises:
        TaraError: when photos cannot be read.
    """

    def __init__(
        self, models: Models, subjects: Sequence[Subject], features: FeatureCache, same_subject: float | None = None
    ) -> None:
        self._detector, self._features, self.models = models.detector, features, models.names
        self._encoders = {"dino": models.dino} | ({"clip_i": models.clip} if models.clip else {})
        photos = {one: [example.image for example in read_examples(one.photos, ("",))] for one in subjects}
        self._whole = WholePictures(models.clip, models.plain_dino, photos, features)
        crops = {one: self._subject_crops(one.class_word, images) for one, images in photos.items()}
        self._references = {
            measure: {one: features.vectors(encoder, some) for one, some in crops.items()}
            for measure, encoder in self._encoders.items()
        }
        own = thresholds([self._references["dino"][one] for one in subjects])
        bars = own if same_subject is None else [same_subject] * len(subjects)
        self._thresholds = dict(zip(subjects, bars, strict=True))

    @property
    def thresholds(self) -> Mapping[Subject, float]:
        """The least likeness that counts as each subject."""
        return self._thresholds

    def look(self, pictures: Sequence[Picture], images: Sequence[Image.Image]) -> list[Detections]:
        """See `tara.evaluation.sight.Sight`."""
        kinds = [tuple(dict.fromkeys(subject.class_word for subject in picture.subjects)) for picture in pictures]
        found, whole = self._find(images, kinds), self._whole.scores(pictures, images)
        return [self._seen(*one) for one in zip(pictures, images, found, whole, strict=True)]

    def _seen(
        self, picture: Picture, image: Image.Image, found: Sequence[Finding], whole: Mapping[str, float]
    ) -> Detections:
        shape = len(picture.subjects), len(found)
        crops = [crop(image, box) for box, _ in found]
        likeness: dict[str, NDArray[np.float64]] = {}
        for measure, encoder in self._encoders.items():
            vectors = self._features.vectors(encoder, crops) if crops else None
            likeness[measure] = np.array(
                [
                    [] if vectors is None else mean_cosine(vectors, self._references[measure][subject])
                    for subject in picture.subjects
                ],
                dtype=float,
            ).reshape(shape)
        fits = [[kind == subject.class_word for _, kind in found] for subject in picture.subjects]
        return Detections(
            boxes=tuple(box for box, _ in found),
            fits=np.array(fits, dtype=bool).reshape(shape),
            likeness=likeness,
            thresholds=np.array([self._thresholds[subject] for subject in picture.subjects]),
            whole=whole,
        )

    def _find(self, images: Sequence[Image.Image], kinds: Sequence[Sequence[str]]) -> list[list[Finding]]:
        """What each picture holds of each of its kinds; one question after another, so that no answer sways another."""
        boxes: list[list[Vectors]] = [[] for _ in images]
        numbers: list[list[int]] = [[] for _ in images]
        for kind in dict.fromkeys(kind for some in kinds for kind in some):
            asked = [number for number, some in enumerate(kinds) if kind in some]
            find = partial(self._detector.find, class_word=kind)
            answers = self._features(
                f"{self._detector.key} {class_word}",
                [images[n] for n in asked],
                lambda some, find=find: map(find, some),
            )
            for number, answer in zip(asked, answers, strict=True):
                boxes[number].append(answer)
                numbers[number] += [kinds[number].index(kind)] * len(answer)
        return [_findings(*one) for one in zip(boxes, numbers, kinds, strict=True)]

    def _subject_crops(self, kind: str, photos: Sequence[Image.Image]) -> list[Image.Image]:
        """The subject in each of its photos; the whole photo where it is not found."""
        found = self._find(photos, [(kind,)] * len(photos))
        return [crop(photo, some[0][0] if some else WHOLE_PICTURE) for photo, some in zip(photos, found, strict=True)]


def thresholds(references: Sequence[Float[np.ndarray, "photos width"]]) -> list[float]:
    """For each subject the likeness half-way between its own photos and those of the other subjects.

    With C[s, t] the mean cosine of the photos of s and t, a photo never with itself, this is
    (C[s, s] + max over t other than s of C[s, t]) / 2. C[s, s] of a single photo is 1; alone, the maximum is 0.
    """
    found: list[float] = []
    for number, own in enumerate(references):
        others = [mean_cosine(own, other).mean() for index, other in enumerate(references) if index != number]
        count = len(own)
        itself = (float((own @ own.T).sum()) - count) / (count * (count - 1)) if count > 1 else 1.0
        found.append((itself + float(max(others, default=0.0))) / 2)
    return found


def _findings(boxes: Sequence[Vectors], numbers: Sequence[int], kinds: Sequence[str]) -> list[Finding]:
    """The boxes of all kinds together, without doubles."""
    together = np.concatenate(boxes)
    found: list[Finding] = []
    for index in non_maximum_suppression(together, np.array(numbers, dtype=int)):
        left, top, right, bottom = together[index, :4].tolist()
        found.append(((left, top, right, bottom), kinds[numbers[index]]))
    return found
