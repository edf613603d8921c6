"""Detects subjects by their class words, and identifies them by similarity to their photos."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tara.evaluation.features import FeatureCache
from tara.evaluation.models import ClipEncoder, Detector, ImageEncoder, VisionEncoder
from tara.evaluation.scores import Box, Detections
from tara.evaluation.settings import NO_MODEL, EvaluationSettings
from tara.evaluation.subjects import ImageRecord, Subject
from tara.families.loading import device_named
from tara.storage.photos import read_photos

MAX_IOU = 0.6  # boxes with at least this intersection over union are one object, also across classes
MAX_CONTAINED = 0.8  # a box with at least this share inside another of its class is a part, such as a dog's head
MARGIN = 0.04  # margin around a crop, as a fraction of the box's longer side
IMAGENET_MEAN = (124, 116, 104)  # the padding of crops, which encoders normalize to 0

LabelledBox = tuple[Box, str]  # a detection and its class word


class SubjectScorer:
    """Detects each class by its word, crops the detections, and compares the crops with crops of the subjects' photos.

    ``dino`` assigns detections to subjects. ``clip``, which represents the class better than the individual, and
    ``plain_dino``, an encoder of whole images, add metrics. ``same_subject`` replaces the default of `thresholds`.

    Raises:
        TaraError: when photos cannot be read.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        features: FeatureCache,
        *,
        detector: Detector,
        dino: ImageEncoder,
        clip: ClipEncoder | None = None,
        plain_dino: ImageEncoder | None = None,
        same_subject: float | None = None,
    ) -> None:
        self._detector, self._features, self._clip = detector, features, clip
        self._crop_encoders: dict[str, ImageEncoder] = {"dino": dino} | ({"clip_i": clip} if clip else {})
        plain: dict[str, ImageEncoder | None] = {"plain_clip_i": clip, "plain_dino": plain_dino}
        self._image_encoders = {name: encoder for name, encoder in plain.items() if encoder}
        photos = {subject: [photo.image for photo in read_photos(subject.photos, ("",))] for subject in subjects}
        crops = {subject: self._subject_crops(subject.class_word, images) for subject, images in photos.items()}
        self._references = {
            name: {subject: features.vectors(encoder, images) for subject, images in of_subjects.items()}
            for encoders, of_subjects in ((self._crop_encoders, crops), (self._image_encoders, photos))
            for name, encoder in encoders.items()
        }
        default = thresholds([self._references["dino"][subject] for subject in subjects])
        levels = default if same_subject is None else [same_subject] * len(subjects)
        self.thresholds: Mapping[Subject, float] = dict(zip(subjects, levels, strict=True))
        """The minimum similarity that counts as each subject."""

    def __call__(self, records: Sequence[ImageRecord], images: Sequence[Image.Image]) -> list[Detections]:
        """The detections in each image, compared with its subjects; records and images are in the same order."""
        classes = [tuple(dict.fromkeys(subject.class_word for subject in record.subjects)) for record in records]
        detected, metrics = self._detect(images, classes), self._image_metrics(records, images)
        return [self._compare(*arguments) for arguments in zip(records, images, detected, metrics, strict=True)]

    def _compare(
        self, record: ImageRecord, image: Image.Image, detected: Sequence[LabelledBox], metrics: Mapping[str, float]
    ) -> Detections:
        shape = len(record.subjects), len(detected)
        crops = [crop(image, box) for box, _ in detected]
        similarity = {name: np.zeros(shape) for name in self._crop_encoders}
        for name, encoder in self._crop_encoders.items() if crops else ():
            vectors = self._features.vectors(encoder, crops)
            similarity[name][:] = [mean_cosine(vectors, self._references[name][subject]) for subject in record.subjects]
        match = [[class_word == subject.class_word for _, class_word in detected] for subject in record.subjects]
        return Detections(
            boxes=tuple(box for box, _ in detected),
            class_match=np.array(match, dtype=bool).reshape(shape),
            similarity=similarity,
            thresholds=np.array([self.thresholds[subject] for subject in record.subjects]),
            image_metrics=metrics,
        )

    def _image_metrics(self, records: Sequence[ImageRecord], images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """Metrics of whole images as papers report them, which do not distinguish subjects.

        ``clip_t`` is the cosine of the image and the prompt without rare words, ``plain_clip_t`` of the image and the
        prompt as it is (Hessel et al., CLIPScore, EMNLP 2021, without their factor); the others are `mean_cosine` with
        all photos of the prompt's subjects.
        """
        metrics: list[dict[str, float]] = [{} for _ in records]
        if self._clip:
            vectors = self._features.vectors(self._clip, images)
            plain, whole = [record.plain_prompt for record in records], [record.prompt for record in records]
            for metric, texts in (("clip_t", plain), ("plain_clip_t", whole)):
                for values, cosine in zip(metrics, (vectors * self._clip.texts(texts)).sum(axis=1), strict=True):
                    values[metric] = float(cosine)
        for metric, encoder in self._image_encoders.items():
            for values, record, vector in zip(metrics, records, self._features.vectors(encoder, images), strict=True):
                photos = np.concatenate([self._references[metric][subject] for subject in record.subjects])
                values[metric] = float(mean_cosine(vector[None], photos)[0])
        return metrics

    def _detect(self, images: Sequence[Image.Image], classes: Sequence[Sequence[str]]) -> list[list[LabelledBox]]:
        """The objects of each image's classes.

        Each class is a separate query, so that it does not change others' boxes.
        """
        boxes: list[list[NDArray[np.float32]]] = [[] for _ in images]
        labels: list[list[str]] = [[] for _ in images]
        for class_word in dict.fromkeys(word for words in classes for word in words):
            queried = [index for index, words in enumerate(classes) if class_word in words]
            detect = partial(self._detector.detect, class_word=class_word)
            key, queries = f"{self._detector.key} {class_word}", [images[index] for index in queried]
            found = self._features(key, queries, lambda batch, detect=detect: map(detect, batch))
            for index, of_class in zip(queried, found, strict=True):
                boxes[index].append(of_class)
                labels[index] += [class_word] * len(of_class)
        detected: list[list[LabelledBox]] = []
        for rows, words in zip(map(np.concatenate, boxes), labels, strict=True):
            kept = non_maximum_suppression(rows, np.array(words))
            detected.append([(tuple(rows[index, :4].tolist()), words[index]) for index in kept])
        return detected

    def _subject_crops(self, class_word: str, photos: Sequence[Image.Image]) -> list[Image.Image]:
        """The crop of the subject in each of its photos; the whole photo if it is not detected."""
        detected = self._detect(photos, [(class_word,)] * len(photos))
        return [crop(photo, own[0][0] if own else (0, 0, 1, 1)) for photo, own in zip(photos, detected, strict=True)]


def load_scorer(settings: EvaluationSettings, subjects: Sequence[Subject], cache: Path) -> SubjectScorer:
    """Load the models of the settings and the subjects' photos. ``cache`` is a folder.

    Raises:
        TaraError: for a missing model, with the command that downloads it, and for unreadable photos.
    """
    device = device_named(settings.device)
    return SubjectScorer(
        subjects,
        FeatureCache(cache, settings.batch_size),
        detector=Detector(settings.detector, device, settings.confidence),
        dino=VisionEncoder(settings.dino, device),
        clip=None if settings.clip == NO_MODEL else ClipEncoder(settings.clip, device),
        plain_dino=None if settings.plain_dino == NO_MODEL else VisionEncoder(settings.plain_dino, device),
        same_subject=settings.same_subject,
    )


def mean_cosine(
    vectors: Float[np.ndarray, "rows width"], references: Float[np.ndarray, "references width"]
) -> Float[np.ndarray, " rows"]:
    """The mean cosine of each vector with all references; all have length 1.

    CLIP-I and DINO are this value for generated images and photos (Ruiz et al., DreamBooth, CVPR 2023, section 4.2).
    """
    return (vectors @ references.T).mean(axis=1)


def thresholds(references: Sequence[Float[np.ndarray, "photos width"]]) -> list[float]:
    """For each subject, the midpoint of its photos' similarity to each other and to the nearest other subject's photos.

    With C[s, t] the mean cosine of the photos of s and t, a photo never with itself, this is
    (C[s, s] + max over t other than s of C[s, t]) / 2. C[s, s] of a single photo is 1; the maximum over none is 0.
    """
    levels: list[float] = []
    for index, own in enumerate(references):
        others = [float(mean_cosine(own, other).mean()) for n, other in enumerate(references) if n != index]
        count = len(own)
        within = (float((own @ own.T).sum()) - count) / (count * (count - 1)) if count > 1 else 1.0
        levels.append((within + max(others, default=0.0)) / 2)
    return levels


def non_maximum_suppression(boxes: Float[np.ndarray, "boxes 5"], classes: Shaped[np.ndarray, " boxes"]) -> list[int]:
    """The indices of the boxes that are neither duplicates nor parts of others, by descending confidence.

    A box is left, top, right, bottom, confidence; ``classes`` are numbers or words.
    """
    areas = (boxes[:, 2:4] - boxes[:, :2]).prod(axis=1)
    kept: list[int] = []
    for index in np.argsort(-boxes[:, 4], kind="stable").tolist():
        low, high = np.maximum(boxes[index, :2], boxes[kept, :2]), np.minimum(boxes[index, 2:4], boxes[kept, 2:4])
        shared = (high - low).clip(min=0).prod(axis=1)
        duplicate = shared > MAX_IOU * (areas[index] + areas[kept] - shared)
        part = (classes[kept] == classes[index]) & (shared > MAX_CONTAINED * areas[index])
        if not (duplicate | part).any():
            kept.append(index)
    return kept


def crop(image: Image.Image, box: Box) -> Image.Image:
    """The content of a box with a small margin, padded to a square.

    Encoders take the central square of an image, so a long crop would lose its ends, and a larger one would show the
    neighbours.
    """
    left, top, right, bottom = (part * side for part, side in zip(box, image.size * 2, strict=True))
    margin = MARGIN * max(right - left, bottom - top)
    corners = left - margin, top - margin, max(right + margin, left + 1), max(bottom + margin, top + 1)
    cut = image.crop(tuple(np.clip(np.round(corners), 0, image.size * 2).astype(int).tolist()))
    return ImageOps.pad(cut, (max(cut.size), max(cut.size)), color=IMAGENET_MEAN)
