"""Likeness, for findings of an unerring judge."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toyland.subjects import (
    SAME_SUBJECT,
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


def test_findings_of_a_subjects_pictures_tell_the_subject() -> None:
    shade = tuple(min(255, channel + 9) for channel in CAT.look.body)
    doubtful = replace(unerring_finding(CAT), kinds=unerring_finding(CAR).kinds, body=shade)
    assert subject_from([unerring_finding(CAT), unerring_finding(CAT), doubtful]) == CAT


@given(SEEDS)
def test_drawn_subjects_of_one_class_differ_clearly(seed: int) -> None:
    subjects = draw_subjects(seed, ["cat", "cat", "cat", "mug"])
    assert [subject.kind for subject in subjects] == ["cat", "cat", "cat", "mug"]
    assert max(resemblance(a, b) for a, b in combinations(subjects[:3], 2)) < 0.5


def test_reference_pictures_show_the_subject_before_different_backgrounds() -> None:
    pictures = reference_pictures(CAT, seed=3)
    assert len({picture.tobytes() for picture in pictures}) == 5
    corners = {picture.getpixel((1, 1)) for picture in pictures}
    assert len(corners) == 5
    again = reference_pictures(CAT, seed=3)
    assert [picture.tobytes() for picture in pictures] == [picture.tobytes() for picture in again]
