"""From what was seen in a picture to scores of its subjects: pure, whoever saw it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as fractions of the picture's sides."""

WHOLE = -1
"""Stands where a subject's number would, for a value of the whole picture."""

Way = tuple[int, float, tuple[int | None, ...]]
"""An assignment of some subjects: how many have a finding, the sum of their likeness, each one's finding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """What was seen in one picture, set against the subjects that should be in it."""

    boxes: tuple[Box, ...]
    """Of each finding."""
    fits: Bool[np.ndarray, "subjects findings"]
    """Whether a finding is of a subject's class."""
    likeness: Mapping[str, Float[np.ndarray, "subjects findings"]]
    """How like each subject every finding looks, by each measure; the first one says who is who."""
    thresholds: Float[np.ndarray, " subjects"]
    """The least likeness, by the first measure, that counts as the subject."""
    whole: Mapping[str, float] = field(default_factory=dict[str, float])
    """Scores of the picture as a whole, such as its nearness to the prompt."""


@dataclass(frozen=True, kw_only=True)
class SubjectScore:
    """One subject of one picture; what an absent one lacks is None or empty."""

    box: Box | None
    """Where it is; None when it is absent."""
    right: bool
    """Present, and at least as like itself as the threshold asks."""
    identity: Mapping[str, float]
    """Likeness of the finding to its own subject, by measure."""
    leakage: Mapping[str, float]
    """How much more the finding is like another subject of the prompt than like its own (0 if it is not)."""
    looks_like: int | None
    """The number of the prompt's subject that the finding is most like."""

    @property
    def present(self) -> bool:
        """Whether something of its class stands for it."""
        return self.box is not None


@dataclass(frozen=True, kw_only=True)
class PictureScore:
    """One picture's subjects, and the picture as a whole."""

    measures: tuple[str, ...]
    subjects: tuple[SubjectScore, ...]
    whole: Mapping[str, float]

    @property
    def success(self) -> bool:
        """All subjects are present and all are right."""
        return all(subject.right for subject in self.subjects)

    @property
    def present(self) -> tuple[bool, ...]:
        """Which subjects are there."""
        return tuple(subject.present for subject in self.subjects)

    def values(self) -> dict[str, dict[int, float]]:
        """Every figure of the picture by name, and for each the values by subject number (or `WHOLE`).

        ``identity`` has no value for an absent subject, ``identity_absent_zero`` has 0 there; ``leakage`` has one only
        beside another subject. Measures after the first add their name, as in ``identity_clip_i``.
        """
        found: dict[str, dict[int, float]] = {
            "success": {WHOLE: float(self.success)},
            "presence": {number: float(one.present) for number, one in enumerate(self.subjects)},
        }
        for measure in self.measures:
            ending = "" if measure == self.measures[0] else f"_{measure}"
            identity = {n: one.identity[measure] for n, one in enumerate(self.subjects) if one.identity}
            found[f"identity{ending}"] = identity
            found[f"identity_absent_zero{ending}"] = {n: identity.get(n, 0.0) for n in range(len(self.subjects))}
            found[f"leakage{ending}"] = {n: one.leakage[measure] for n, one in enumerate(self.subjects) if one.leakage}
        return found | {name: {WHOLE: value} for name, value in self.whole.items()}


def score(seen: Detections) -> PictureScore:
    """Say which finding is which subject, and how well each one came out.

    With L (subjects, findings) the likeness by one measure and f the finding of subject s: identity is L[s, f], leakage
    max(0, max over the other subjects t of L[t, f] - L[s, f]).
    """
    measures = tuple(seen.likeness)
    deciding = seen.likeness[measures[0]]
    subjects: list[SubjectScore] = []
    for number, finding in enumerate(assign(deciding, seen.fits)):
        if finding is None:
            subjects.append(SubjectScore(box=None, right=False, identity={}, leakage={}, looks_like=None))
            continue
        columns = {measure: seen.likeness[measure][:, finding] for measure in measures}
        subjects.append(
            SubjectScore(
                box=seen.boxes[finding],
                right=bool(deciding[number, finding] >= seen.thresholds[number]),
                identity={measure: float(column[number]) for measure, column in columns.items()},
                leakage={measure: leakage(column, number) for measure, column in columns.items() if len(column) > 1},
                looks_like=int(np.argmax(deciding[:, finding])),
            )
        )
    return PictureScore(measures=measures, subjects=tuple(subjects), whole=seen.whole)


def leakage(likeness: Float[np.ndarray, " subjects"], own: int) -> float:
    """How much more one finding is like another subject than like its ``own``; 0 when it is most like its own."""
    return max(0.0, float(np.delete(likeness, own).max() - likeness[own]))


def assign(
    likeness: Float[np.ndarray, "subjects findings"], fits: Bool[np.ndarray, "subjects findings"]
) -> tuple[int | None, ...]:
    """Each subject's finding: as many subjects as can be are found, and the sum of their likeness is the greatest.

    A finding serves one subject, of its own class; None where there is none for a subject.
    """
    ways: dict[frozenset[int], Way] = {frozenset(): (0, 0.0, ())}
    for likes, fitting in zip(likeness, fits, strict=True):
        grown: dict[frozenset[int], Way] = {}
        for taken, (found, total, chosen) in ways.items():
            _keep_better(grown, taken, (found, total, (*chosen, None)))
            for finding in np.flatnonzero(fitting).tolist():
                if finding not in taken:
                    way = (found + 1, total + float(likes[finding]), (*chosen, finding))
                    _keep_better(grown, taken | {finding}, way)
        ways = grown
    return max(ways.values(), key=lambda way: way[:2])[2]


def _keep_better(ways: dict[frozenset[int], Way], taken: frozenset[int], way: Way) -> None:
    """Of two ways that leave the same findings for others, the rest of the subjects needs only the better one."""
    if taken not in ways or way[:2] > ways[taken][:2]:
        ways[taken] = way
