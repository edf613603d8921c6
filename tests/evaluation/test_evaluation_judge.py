"""What an unerring judge's verdicts come to: presence, identity, leakage and success."""

from dataclasses import replace

import pytest

from looks import picture_of
from tara.evaluation import judge
from tara.evaluation.scores import PictureScore
from tara.evaluation.scores import score as of_seen
from toyland.judge import Verdict
from toyland.subjects import draw_subjects, resemblance
from toyland.world import Subject

CAT, OTHER_CAT, CAR = draw_subjects(1, ["cat", "cat", "car"])


def score(verdict: Verdict, subjects: tuple[Subject, ...]) -> PictureScore:
    return of_seen(judge.seen(verdict, subjects))


def identity(score: PictureScore) -> list[float]:
    return [*score.values()["identity"].values()]


def leakage(score: PictureScore) -> list[float]:
    return [*score.values()["leakage"].values()]


def test_both_subjects_with_their_own_looks_are_a_success() -> None:
    for subjects in ((CAT, CAR), (CAT, OTHER_CAT), (CAT, OTHER_CAT, CAR)):
        result = score(picture_of(*subjects), subjects)
        assert result.success
        assert result.present == (True,) * len(subjects)
        assert identity(result) == pytest.approx([1.0] * len(subjects))
        assert leakage(result) == pytest.approx([0.0] * len(subjects))


def test_two_of_one_class_are_assigned_whichever_way_they_stand() -> None:
    assert score(picture_of(OTHER_CAT, CAT), (CAT, OTHER_CAT)).success
    assert identity(score(picture_of(OTHER_CAT, CAT), (CAT, OTHER_CAT))) == pytest.approx([1.0, 1.0])


def test_one_finding_serves_one_subject_only() -> None:
    result = score(picture_of(CAT), (CAT, OTHER_CAT))
    assert not result.success
    assert result.present == (True, False)
    assert identity(result) == [pytest.approx(1)]
    assert list(result.values()["leakage"]) == [0]


def test_a_missing_subject_is_no_success_and_has_no_likeness() -> None:
    result = score(picture_of(CAR), (CAT, CAR))
    assert not result.success
    assert result.present == (False, True)
    assert list(result.values()["identity"]) == [1]


def test_the_right_looks_on_the_wrong_class_are_not_the_subject() -> None:
    result = score(picture_of(replace(CAT, kind="dog"), CAR), (CAT, CAR))
    assert result.present == (False, True)


def test_an_empty_picture_scores_nothing() -> None:
    empty = Verdict(things=(), background="beach", style="none")
    result = score(empty, (CAT, CAR))
    assert not result.success
    assert result.present == (False, False)
    assert leakage(result) == []


def test_a_stranger_of_the_class_is_present_but_no_success() -> None:
    result = score(picture_of(OTHER_CAT, CAR), (CAT, CAR))
    assert result.present == (True, True)
    assert not result.success


def test_further_objects_do_no_harm() -> None:
    assert score(picture_of(CAT, CAR, replace(CAR, kind="boat")), (CAT, CAR)).success


def test_looks_that_moved_to_the_other_subject_are_leakage() -> None:
    swapped = picture_of(replace(CAT, look=CAR.look), replace(CAR, look=CAT.look))
    result = score(swapped, (CAT, CAR))
    assert not result.success
    own = resemblance(replace(CAR, kind="cat"), CAT)
    assert leakage(result) == pytest.approx([1 - own, 1 - own])


def test_leakage_has_no_sense_for_a_single_subject() -> None:
    assert leakage(score(picture_of(CAT), (CAT,))) == []


def test_the_background_counts_when_the_prompt_names_it() -> None:
    prompts = {"a cat on the beach": {"background": 1.0}, "a cat at night": {"background": 0.0}, "a cat": {}}
    assert {prompt: judge.seen(picture_of(CAT), [CAT], prompt).whole for prompt in prompts} == prompts
