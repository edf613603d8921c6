"""Scores of the subjects in an image, computed from its detections: pure functions of arrays."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment

Box = tuple[float, float, float, float]  # left, top, right, bottom, as fractions of the image's sides
WHOLE_IMAGE = -1  # used as the subject's index for a metric of the whole image


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """The detections in one image, and their similarities to the subjects that it should show."""

    boxes: tuple[Box, ...]
    class_match: Bool[np.ndarray, "subjects detections"]
    """Whether a detection is of a subject's class."""
    similarity: Mapping[str, Float[np.ndarray, "subjects detections"]]
    """Similarity of detections and subjects by each encoder; the first one decides which detection is which subject."""
    thresholds: Float[np.ndarray, " subjects"]
    """Minimum similarity, by the first encoder, that counts as the subject."""
    image_metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    """Metrics of the whole image, such as its similarity to the prompt."""


@dataclass(frozen=True, kw_only=True)
class SubjectScore:
    """The score of one subject of one image.

    ``identity`` and ``leakage`` have a value per encoder; empty if it is absent.
    """

    box: Box | None
    correct: bool
    """Present, with at least the similarity that the threshold asks for."""
    identity: Mapping[str, float]
    """Similarity of the assigned detection to the subject itself."""
    leakage: Mapping[str, float]
    """How much more similar the detection is to another subject of the prompt than to its own (0 if it is not)."""
    most_similar: int | None
    """Index of the prompt's subject that the detection is most similar to."""

    @property
    def present(self) -> bool:
        """Whether a detection is assigned to the subject."""
        return self.box is not None


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """The scores of one image's subjects, and the metrics of the whole image."""

    encoders: tuple[str, ...]
    subjects: tuple[SubjectScore, ...]
    image_metrics: Mapping[str, float]

    @property
    def success(self) -> bool:
        return all(subject.correct for subject in self.subjects)

    @property
    def present(self) -> tuple[bool, ...]:
        return tuple(subject.present for subject in self.subjects)

    def values(self) -> dict[str, dict[int, float]]:
        """Every metric by name, with its values by subject index (or `WHOLE_IMAGE`).

        ``identity`` has no value for an absent subject, ``identity_absent_zero`` has 0. ``leakage`` has a value only
        with two or more subjects. Metrics of encoders after the first end with the encoder's name: ``identity_clip_i``.
        """
        values: dict[str, dict[int, float]] = {
            "success": {WHOLE_IMAGE: float(self.success)},
            "presence": {index: float(present) for index, present in enumerate(self.present)},
        }
        for encoder in self.encoders:
            suffix = "" if encoder == self.encoders[0] else f"_{encoder}"
            identity = {n: subject.identity[encoder] for n, subject in enumerate(self.subjects) if subject.identity}
            values[f"identity{suffix}"] = identity
            values[f"identity_absent_zero{suffix}"] = {n: identity.get(n, 0.0) for n in range(len(self.subjects))}
            values[f"leakage{suffix}"] = {
                n: subject.leakage[encoder] for n, subject in enumerate(self.subjects) if subject.leakage
            }
        return values | {name: {WHOLE_IMAGE: value} for name, value in self.image_metrics.items()}


def score(detections: Detections) -> ImageScore:
    """Assign detections to subjects and score each subject. An image is a success if all its subjects are correct.

    With S (subjects, detections) the similarity by one encoder and d the detection of subject s: identity is S[s, d],
    leakage max(0, max over the other subjects t of S[t, d] - S[s, d]).
    """
    encoders = tuple(detections.similarity)
    deciding = detections.similarity[encoders[0]]
    subjects: list[SubjectScore] = []
    for index, detection in enumerate(assign(deciding, detections.class_match)):
        if detection is None:
            subjects.append(SubjectScore(box=None, correct=False, identity={}, leakage={}, most_similar=None))
            continue
        columns = {encoder: detections.similarity[encoder][:, detection] for encoder in encoders}
        subjects.append(
            SubjectScore(
                box=detections.boxes[detection],
                correct=bool(deciding[index, detection] >= detections.thresholds[index]),
                identity={encoder: float(column[index]) for encoder, column in columns.items()},
                leakage={encoder: leakage(column, index) for encoder, column in columns.items() if len(column) > 1},
                most_similar=int(np.argmax(deciding[:, detection])),
            )
        )
    return ImageScore(encoders=encoders, subjects=tuple(subjects), image_metrics=detections.image_metrics)


def leakage(similarity: Float[np.ndarray, " subjects"], own: int) -> float:
    """How much more similar a detection is to another subject than to subject ``own``; 0 if ``own`` is most similar."""
    return max(0.0, float(np.delete(similarity, own).max() - similarity[own]))


def assign(
    similarity: Float[np.ndarray, "subjects detections"], class_match: Bool[np.ndarray, "subjects detections"]
) -> tuple[int | None, ...]:
    """Assign detections to subjects: as many matches as possible and, among these, the largest sum of similarities.

    A detection is assigned to at most one subject, of the same class. None means that the subject has no detection.
    """
    # one more match outweighs any difference between two sums
    bonus = 1 + 2 * len(similarity) * np.abs(similarity).max(initial=0)
    rows, columns = linear_sum_assignment(np.where(class_match, similarity + bonus, 0), maximize=True)
    assigned = {int(row): int(column) for row, column in zip(rows, columns, strict=True) if class_match[row, column]}
    return tuple(assigned.get(row) for row in range(len(similarity)))
