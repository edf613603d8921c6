"""Likeness, and scores of subjects, for findings of an unerring judge."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from looks import verdict_of
from tara.evaluation.scores import Detections, ImageScore
from tara.evaluation.scores import score as score_of
from toyland.judge import Verdict
from toyland.subjects import (
    SAME_SUBJECT,
    detections,
    draw_subjects,
    likeness,
    reference_pictures,
    resemblance,
    subject_from,
    unerring_finding,
)
from toyland.world import ACCESSORIES, PATTERNS, Subject, random_subject

SEEDS = st.integers(0, 2**32 - 1)
CAT, OTHER_CAT, CAR = draw_subjects(1, ["cat", "cat", "car"])


def _subject(seed: int, kind: str | None = None) -> Subject:
    return random_subject(np.random.default_rng(seed), kind)


@given(SEEDS)
def test_a_subject_is_wholly_like_itself(seed: int) -> None:
    subject = _subject(seed)
    assert likeness(unerring_finding(subject), subject) == pytest.approx(1)
    assert resemblance(subject, subject) == pytest.approx(1)


@given(SEEDS, SEEDS)
def test_resemblance_is_mutual_and_between_none_and_whole(first: int, second: int) -> None:
    one, other = _subject(first, "dog"), _subject(second, "dog")
    assert 0 <= resemblance(one, other) <= 1
    assert resemblance(one, other) == pytest.approx(resemblance(other, one))


@given(SEEDS)
def test_every_wrong_attribute_costs_likeness(seed: int) -> None:
    subject = _subject(seed)
    look = subject.look
    wrong = [
        replace(look, pattern=next(p for p in PATTERNS if p != look.pattern)),
        replace(look, accessory=next(a for a in ACCESSORIES[1:] if a != look.accessory)),
        *(
            replace(look, **{part: tuple(255 - channel if abs(channel - 128) > 40 else 0 for channel in rgb)})
            for part, rgb in (("body", look.body), ("second", look.second), ("third", look.third))
        ),
    ]
    likes = [likeness(unerring_finding(replace(subject, look=other)), subject) for other in wrong]
    assert max(likes) < 0.95
    assert likes[0] == pytest.approx(0.8)
    assert likes[1] == pytest.approx(0.8)


def test_an_almost_equal_shade_still_passes_and_another_colour_does_not() -> None:
    look = CAT.look
    shade = tuple(min(255, channel + 12) for channel in look.body)
    assert likeness(unerring_finding(replace(CAT, look=replace(look, body=shade))), CAT) > SAME_SUBJECT
    assert likeness(unerring_finding(OTHER_CAT), CAT) < SAME_SUBJECT


def test_findings_of_a_subjects_images_tell_the_subject() -> None:
    shade = tuple(min(255, channel + 9) for channel in CAT.look.body)
    doubtful = replace(unerring_finding(CAT), kinds=unerring_finding(CAR).kinds, body=shade)
    assert subject_from([unerring_finding(CAT), unerring_finding(CAT), doubtful]) == CAT


@given(SEEDS)
def test_drawn_subjects_of_one_class_differ_clearly(seed: int) -> None:
    subjects = draw_subjects(seed, ["cat", "cat", "cat", "mug"])
    assert [subject.kind for subject in subjects] == ["cat", "cat", "cat", "mug"]
    assert max(resemblance(a, b) for a, b in combinations(subjects[:3], 2)) < 0.5


def test_reference_images_show_the_subject_before_different_backgrounds() -> None:
    pictures = reference_pictures(CAT, seed=3)
    assert len({picture.tobytes() for picture in pictures}) == 5
    corners = {picture.getpixel((1, 1)) for picture in pictures}
    assert len(corners) == 5
    again = reference_pictures(CAT, seed=3)
    assert [picture.tobytes() for picture in pictures] == [picture.tobytes() for picture in again]


def score(verdict: Verdict, subjects: tuple[Subject, ...]) -> ImageScore:
    return score_of(Detections(**detections(verdict, subjects)))


def identity(score: ImageScore) -> list[float]:
    return [*score.values()["identity"].values()]


def leakage(score: ImageScore) -> list[float]:
    return [*score.values()["leakage"].values()]


def test_both_subjects_with_their_own_appearance_are_a_success() -> None:
    for subjects in ((CAT, CAR), (CAT, OTHER_CAT), (CAT, OTHER_CAT, CAR)):
        result = score(verdict_of(*subjects), subjects)
        assert result.success
        assert result.present == (True,) * len(subjects)
        assert identity(result) == pytest.approx([1.0] * len(subjects))
        assert leakage(result) == pytest.approx([0.0] * len(subjects))


def test_two_subjects_of_one_class_are_assigned_wherever_they_are() -> None:
    assert score(verdict_of(OTHER_CAT, CAT), (CAT, OTHER_CAT)).success
    assert identity(score(verdict_of(OTHER_CAT, CAT), (CAT, OTHER_CAT))) == pytest.approx([1.0, 1.0])


def test_one_finding_is_assigned_to_one_subject_only() -> None:
    result = score(verdict_of(CAT), (CAT, OTHER_CAT))
    assert not result.success
    assert result.present == (True, False)
    assert identity(result) == [pytest.approx(1)]
    assert list(result.values()["leakage"]) == [0]


def test_a_missing_subject_is_no_success_and_has_no_identity() -> None:
    result = score(verdict_of(CAR), (CAT, CAR))
    assert not result.success
    assert result.present == (False, True)
    assert list(result.values()["identity"]) == [1]


def test_the_right_appearance_on_another_class_is_not_the_subject() -> None:
    result = score(verdict_of(replace(CAT, kind="dog"), CAR), (CAT, CAR))
    assert result.present == (False, True)


def test_an_image_without_findings_scores_nothing() -> None:
    empty = Verdict(things=(), background="beach", style="none")
    result = score(empty, (CAT, CAR))
    assert not result.success
    assert result.present == (False, False)
    assert leakage(result) == []


def test_another_subject_of_the_class_is_present_but_no_success() -> None:
    result = score(verdict_of(OTHER_CAT, CAR), (CAT, CAR))
    assert result.present == (True, True)
    assert not result.success


def test_further_objects_do_no_harm() -> None:
    assert score(verdict_of(CAT, CAR, replace(CAR, kind="boat")), (CAT, CAR)).success


def test_an_appearance_that_moved_to_the_other_subject_is_leakage() -> None:
    swapped = verdict_of(replace(CAT, look=CAR.look), replace(CAR, look=CAT.look))
    result = score(swapped, (CAT, CAR))
    assert not result.success
    own = resemblance(replace(CAR, kind="cat"), CAT)
    assert leakage(result) == pytest.approx([1 - own, 1 - own])


def test_a_single_subject_has_no_leakage() -> None:
    assert leakage(score(verdict_of(CAT), (CAT,))) == []
