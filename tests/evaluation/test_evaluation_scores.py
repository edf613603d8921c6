"""Who is who in a picture and how well each came out, against plain formulas."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tara.evaluation.scores import WHOLE, Detections, PictureScore, assign, leakage, score


def seen(
    likeness: list[list[float]],
    fits: list[list[int]] | None = None,
    threshold: float = 0.5,
    **further: list[list[float]],
) -> Detections:
    array = np.array(likeness, dtype=float)
    return Detections(
        boxes=tuple((0.1 * n, 0.0, 0.1 * n + 0.1, 1.0) for n in range(array.shape[1])),
        fits=np.ones_like(array, dtype=bool) if fits is None else np.array(fits, dtype=bool),
        likeness={"judge": array, **{name: np.array(values) for name, values in further.items()}},
        thresholds=np.full(len(array), threshold),
    )


def plainly_best(likeness: NDArray[np.float64], fits: NDArray[np.bool_]) -> tuple[int, float]:
    """How many subjects can be found at once, and the greatest sum of their likeness, by trying everything."""
    subjects, findings = fits.shape
    slots = [*range(findings), *([None] * subjects)]
    ways = [
        [(row, index) for row, index in enumerate(choice) if index is not None]
        for choice in permutations(slots, subjects)
    ]
    allowed = [way for way in ways if all(fits[at] for at in way)]
    return max((len(way), round(sum(likeness[at] for at in way), 9)) for way in allowed)


@settings(max_examples=60)
@given(st.integers(1, 3), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_the_assignment_is_the_best_of_all(subjects: int, findings: int, seed: int):
    rng = np.random.default_rng(seed)
    likeness, fits = rng.uniform(-1, 1, (subjects, findings)), rng.random((subjects, findings)) < 0.6
    chosen = [(row, index) for row, index in enumerate(assign(likeness, fits)) if index is not None]
    assert len({index for _, index in chosen}) == len(chosen)
    assert all(fits[at] for at in chosen)
    assert (len(chosen), round(sum(likeness[at] for at in chosen), 9)) == plainly_best(likeness, fits)


def test_a_subject_that_only_one_finding_fits_gets_it_although_another_is_more_like_it():
    assert assign(np.array([[0.9, 0.1], [0.8, 0.0]]), np.array([[True, True], [True, False]])) == (1, 0)


def test_all_present_and_all_like_themselves_is_a_success():
    assert score(seen([[0.9, 0.1], [0.2, 0.8]])).success
    assert not score(seen([[0.9, 0.1], [0.2, 0.4]])).success
    assert not score(seen([[0.9], [0.2]])).success


def test_an_absent_subject_counts_as_nothing_or_as_zero():
    values = score(seen([[0.9], [0.2]])).values()
    assert values["presence"] == {0: 1.0, 1: 0.0}
    assert values["identity"] == {0: 0.9}
    assert values["identity_absent_zero"] == {0: 0.9, 1: 0.0}
    assert values["success"] == {WHOLE: 0.0}


def test_an_empty_picture_has_no_identity_and_no_leakage():
    found = score(seen([[], []]))
    assert [one.present for one in found.subjects] == [False, False]
    values = found.values()
    assert (values["identity"], values["leakage"]) == ({}, {})


def test_a_wrong_class_is_nobody():
    found = score(seen([[0.9, 0.1], [0.1, 0.9]], fits=[[0, 1], [0, 0]]))
    assert [one.box for one in found.subjects] == [pytest.approx((0.1, 0.0, 0.2, 1.0)), None]


def test_looks_that_moved_to_the_other_subject_are_leakage_and_confusion():
    swapped = score(seen([[0.1, 0.9], [0.7, 0.3]], fits=[[1, 0], [0, 1]]))
    assert [one.looks_like for one in swapped.subjects] == [1, 0]
    assert swapped.values()["leakage"] == {0: pytest.approx(0.6), 1: pytest.approx(0.6)}
    assert leakage(np.array([0.8, 0.3, 0.5]), 0) == 0.0


def test_leakage_has_no_sense_for_a_single_subject():
    assert score(seen([[0.9]])).values()["leakage"] == {}


def test_further_measures_are_told_by_name_and_decide_nothing():
    found: PictureScore = score(seen([[0.9, 0.1]], clip_i=[[0.2, 0.8]]))
    values = found.values()
    assert values["identity"] == {0: 0.9}
    assert values["identity_clip_i"] == {0: 0.2}
    assert found.subjects[0].box == (0.0, 0.0, 0.1, 1.0)
