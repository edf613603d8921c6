"""From images to scores: non-maximum suppression, crops, and subjects that stand-ins detect and identify."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from known_models import BLUE, RED, Rgb, colour_photos, halves, known_scorer
from tara.evaluation.scorer import IMAGENET_MEAN, SubjectScorer, crop, non_maximum_suppression, thresholds
from tara.evaluation.scores import ImageScore, score
from tara.evaluation.subjects import ImageRecord, Subject

DOG, CAT = 0, 1
WHOLE = [0.1, 0.1, 0.9, 0.9, 0.8]


def kept(*boxes: list[float], classes: list[int] | None = None) -> list[int]:
    return non_maximum_suppression(np.array(boxes), np.array(classes or [DOG] * len(boxes)))


def test_confident_boxes_come_first_and_duplicates_are_removed():
    assert kept([0.1, 0.1, 0.9, 0.9, 0.3], [0.12, 0.1, 0.9, 0.88, 0.7]) == [1]
    assert kept([0.0, 0.0, 0.4, 1.0, 0.3], [0.6, 0.0, 1.0, 1.0, 0.7]) == [1, 0]


def test_a_part_of_an_object_is_removed_but_an_object_of_another_class_before_it_is_kept():
    head = [0.1, 0.1, 0.4, 0.4, 0.5]
    assert kept(WHOLE, head) == [0]
    assert kept(WHOLE, head, classes=[DOG, CAT]) == [0, 1]


def test_an_object_of_two_classes_keeps_the_more_confident_one():
    assert kept(WHOLE, [0.1, 0.1, 0.9, 0.88, 0.81], classes=[DOG, CAT]) == [1]


def test_no_boxes_stay_no_boxes():
    assert non_maximum_suppression(np.zeros((0, 5)), np.zeros(0, dtype=int)) == []


def test_a_crop_is_a_square_with_the_whole_object_and_nothing_of_its_neighbours():
    image = Image.new("RGB", (200, 100), "red")
    image.paste("blue", (100, 0, 200, 100))
    cut = np.asarray(crop(image, (0.5, 0.25, 1.0, 0.75)))
    assert cut.shape[0] == cut.shape[1] == 104  # 100 pixels and the margin on the side where the image goes on
    colours = {tuple(pixel) for pixel in cut[:, 4:].reshape(-1, 3).tolist()}
    assert colours == {(0, 0, 255), IMAGENET_MEAN}
    assert (cut == (0, 0, 255)).all(axis=-1).sum() == 100 * 58


def test_a_box_without_width_still_gives_an_image():
    assert crop(Image.new("RGB", (64, 64)), (0.5, 0.5, 0.5, 0.5)).size[0] >= 1


def scorer_of(folder: Path, *subjects: tuple[str, str, Rgb], **options: Any) -> SubjectScorer:
    named = [
        Subject(rare_word=rare_word, class_word=class_word, photos=colour_photos(folder / rare_word, colour))
        for rare_word, class_word, colour in subjects
    ]
    return known_scorer(named, folder / "cache", **options)


def scored(scorer: SubjectScorer, image: Image.Image) -> ImageScore:
    record = ImageRecord(path=Path("x"), series="", prompt="", seed=0, subjects=tuple(scorer.thresholds))
    (detections,) = scorer([record], [image])
    return score(detections)


def test_subjects_are_detected_by_class_and_identified_by_their_photos(tmp_path: Path):
    scorer = scorer_of(tmp_path, ("xlo", "dog", RED), ("szn", "cat", BLUE))
    right, swapped = scored(scorer, halves(RED, BLUE)), scored(scorer, halves(BLUE, RED))
    assert right.success
    assert right.values()["identity"] == {0: pytest.approx(1), 1: pytest.approx(1)}
    assert right.values()["leakage"] == {0: 0.0, 1: 0.0}
    assert not swapped.success
    assert [one.most_similar for one in swapped.subjects] == [1, 0]
    assert swapped.values()["leakage"][0] > 0.8


def test_two_subjects_of_one_class_are_identified_wherever_they_are(tmp_path: Path):
    scorer = scorer_of(tmp_path, ("xlo", "toy", RED), ("szn", "toy", BLUE))
    result = scored(scorer, halves(BLUE, RED))
    assert result.success
    assert [one.box[0] for one in result.subjects if one.box] == [0.5, 0.0]
    assert not scored(scorer, halves(BLUE, BLUE)).success


def test_a_subject_that_is_not_detected_is_absent(tmp_path: Path):
    result = scored(scorer_of(tmp_path, ("xlo", "dog", RED), ("kib", "house", BLUE)), halves(RED, BLUE))
    assert [one.present for one in result.subjects] == [True, False]


def test_the_threshold_is_half_way_between_own_and_other_photos(tmp_path: Path):
    rng = np.random.default_rng(0)
    photos = [rng.normal(size=(count, 5)) for count in (3, 4, 1)]
    photos = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in photos]
    own = [float(np.dot(a, b)) for i, a in enumerate(photos[0]) for j, b in enumerate(photos[0]) if i != j]
    others = [np.mean([float(np.dot(a, b)) for a in photos[0] for b in photos[n]]) for n in (1, 2)]
    assert thresholds(photos)[0] == pytest.approx((np.mean(own) + max(others)) / 2)
    assert thresholds(photos[2:]) == [0.5]
    given = scorer_of(tmp_path, ("xlo", "dog", RED), same_subject=0.25)
    assert list(given.thresholds.values()) == [0.25]
