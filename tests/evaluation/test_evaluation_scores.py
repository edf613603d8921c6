"""Assignment of detections to subjects, and their scores, against plain formulas."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tara.evaluation.scores import WHOLE_IMAGE, Detections, ImageScore, assign, leakage, score


def detections(
    similarity: list[list[float]],
    class_match: list[list[int]] | None = None,
    threshold: float = 0.5,
    **further: list[list[float]],
) -> Detections:
    array = np.array(similarity, dtype=float)
    return Detections(
        boxes=tuple((0.1 * n, 0.0, 0.1 * n + 0.1, 1.0) for n in range(array.shape[1])),
        class_match=np.ones_like(array, dtype=bool) if class_match is None else np.array(class_match, dtype=bool),
        similarity={"judge": array, **{name: np.array(values) for name, values in further.items()}},
        thresholds=np.full(len(array), threshold),
    )


def best_by_trial(similarity: NDArray[np.float64], class_match: NDArray[np.bool_]) -> tuple[int, float]:
    """The largest number of matches, and their largest sum of similarities, by trying every assignment."""
    subjects, detected = class_match.shape
    slots = [*range(detected), *([None] * subjects)]
    assignments = [
        [(row, index) for row, index in enumerate(choice) if index is not None]
        for choice in permutations(slots, subjects)
    ]
    allowed = [one for one in assignments if all(class_match[at] for at in one)]
    return max((len(one), round(sum(similarity[at] for at in one), 9)) for one in allowed)


@settings(max_examples=60)
@given(st.integers(1, 3), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_the_assignment_is_the_best_of_all(subjects: int, detected: int, seed: int):
    rng = np.random.default_rng(seed)
    similarity, class_match = rng.uniform(-1, 1, (subjects, detected)), rng.random((subjects, detected)) < 0.6
    chosen = [(row, index) for row, index in enumerate(assign(similarity, class_match)) if index is not None]
    assert len({index for _, index in chosen}) == len(chosen)
    assert all(class_match[at] for at in chosen)
    assert (len(chosen), round(sum(similarity[at] for at in chosen), 9)) == best_by_trial(similarity, class_match)


def test_a_subject_with_a_single_detection_gets_it_although_another_subject_is_more_similar():
    assert assign(np.array([[0.9, 0.1], [0.8, 0.0]]), np.array([[True, True], [True, False]])) == (1, 0)


def test_all_present_and_all_like_themselves_is_a_success():
    assert score(detections([[0.9, 0.1], [0.2, 0.8]])).success
    assert not score(detections([[0.9, 0.1], [0.2, 0.4]])).success
    assert not score(detections([[0.9], [0.2]])).success


def test_an_absent_subject_counts_as_nothing_or_as_zero():
    values = score(detections([[0.9], [0.2]])).values()
    assert values["presence"] == {0: 1.0, 1: 0.0}
    assert values["identity"] == {0: 0.9}
    assert values["identity_absent_zero"] == {0: 0.9, 1: 0.0}
    assert values["success"] == {WHOLE_IMAGE: 0.0}


def test_an_empty_image_has_no_identity_and_no_leakage():
    result = score(detections([[], []]))
    assert [one.present for one in result.subjects] == [False, False]
    values = result.values()
    assert (values["identity"], values["leakage"]) == ({}, {})


def test_a_detection_of_another_class_is_not_assigned():
    result = score(detections([[0.9, 0.1], [0.1, 0.9]], class_match=[[0, 1], [0, 0]]))
    assert [one.box for one in result.subjects] == [pytest.approx((0.1, 0.0, 0.2, 1.0)), None]


def test_an_appearance_that_moved_to_the_other_subject_is_leakage_and_confusion():
    swapped = score(detections([[0.1, 0.9], [0.7, 0.3]], class_match=[[1, 0], [0, 1]]))
    assert [one.most_similar for one in swapped.subjects] == [1, 0]
    assert swapped.values()["leakage"] == {0: pytest.approx(0.6), 1: pytest.approx(0.6)}
    assert leakage(np.array([0.8, 0.3, 0.5]), 0) == 0.0


def test_a_single_subject_has_no_leakage():
    assert score(detections([[0.9]])).values()["leakage"] == {}


def test_further_encoders_add_metrics_by_name_and_decide_nothing():
    result: ImageScore = score(detections([[0.9, 0.1]], clip_i=[[0.2, 0.8]]))
    values = result.values()
    assert values["identity"] == {0: 0.9}
    assert values["identity_clip_i"] == {0: 0.2}
    assert result.subjects[0].box == (0.0, 0.0, 0.1, 1.0)
