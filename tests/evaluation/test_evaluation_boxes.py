"""Boxes: doubles, parts, neighbours, and the square crops that encoders see."""

import numpy as np
from PIL import Image

from tara.evaluation.boxes import NEUTRAL, crop, non_maximum_suppression

DOG, CAT = 0, 1
WHOLE = [0.1, 0.1, 0.9, 0.9, 0.8]


def kept(*boxes: list[float], kinds: list[int] | None = None) -> list[int]:
    return non_maximum_suppression(np.array(boxes), np.array(kinds or [DOG] * len(boxes)))


def test_the_surest_comes_first_and_a_double_goes():
    assert kept([0.1, 0.1, 0.9, 0.9, 0.3], [0.12, 0.1, 0.9, 0.88, 0.7]) == [1]
    assert kept([0.0, 0.0, 0.4, 1.0, 0.3], [0.6, 0.0, 1.0, 1.0, 0.7]) == [1, 0]


def test_a_part_goes_but_something_of_another_class_before_it_stays():
    head = [0.1, 0.1, 0.4, 0.4, 0.5]
    assert kept(WHOLE, head) == [0]
    assert kept(WHOLE, head, kinds=[DOG, CAT]) == [0, 1]


def test_one_thing_is_of_the_class_that_it_is_surest_of():
    assert kept(WHOLE, [0.1, 0.1, 0.9, 0.88, 0.81], kinds=[DOG, CAT]) == [1]


def test_no_boxes_are_none():
    assert non_maximum_suppression(np.zeros((0, 5)), np.zeros(0, dtype=int)) == []


def test_a_crop_is_a_square_with_the_whole_thing_and_nothing_of_its_neighbours():
    image = Image.new("RGB", (200, 100), "red")
    image.paste("blue", (100, 0, 200, 100))
    cut = np.asarray(crop(image, (0.5, 0.25, 1.0, 0.75)))
    assert cut.shape[0] == cut.shape[1] == 104  # 100 pixels and the margin on the side where there is more picture
    colours = {tuple(pixel) for pixel in cut[:, 4:].reshape(-1, 3).tolist()}
    assert colours == {(0, 0, 255), NEUTRAL}
    assert (cut == (0, 0, 255)).all(axis=-1).sum() == 100 * 58


def test_a_box_of_no_width_still_gives_a_picture():
    assert crop(Image.new("RGB", (64, 64)), (0.5, 0.5, 0.5, 0.5)).size[0] >= 1
