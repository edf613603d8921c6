"""Scenes are laid out so that every thing can be seen whole."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toyland.scenes import scene_number
from toyland.world import (
    ACCESSORIES,
    CLASSES,
    COLORS,
    HALF_SIZES,
    NAMED_STYLES,
    SHADE,
    UNNAMED_STYLES,
    Scene,
    SceneDistribution,
    nearest_color,
    place,
    random_scene,
    random_shade,
    random_subject,
)

SEEDS = st.integers(0, 2**32 - 1)


def _scene(seed: int, count: int = 0) -> Scene:
    rng = np.random.default_rng(seed)
    return place(rng, [random_subject(rng) for _ in range(count)], background="snow") if count else random_scene(rng)


@given(SEEDS, st.sampled_from([0, 1, 2, 3]))
def test_things_stand_inside_the_image(seed: int, count: int) -> None:
    for thing in _scene(seed, count).things:
        assert 1.05 * thing.size <= thing.x <= 1 - 1.05 * thing.size
        assert 1.7 * thing.size <= thing.y + 1e-9  # room for what it wears
        assert thing.y + thing.size <= 1


@given(SEEDS, st.sampled_from([2, 3]))
def test_things_stand_apart_and_from_left_to_right(seed: int, count: int) -> None:
    for left, right in pairwise(_scene(seed, count).things):
        assert right.x - left.x >= 1.05 * (left.size + right.size) - 1e-9


@given(SEEDS)
def test_a_scene_is_a_function_of_its_seed(seed: int) -> None:
    assert _scene(seed) == _scene(seed)


@given(SEEDS, st.sampled_from(sorted(COLORS)))
def test_a_shade_keeps_its_colours_name(seed: int, name: str) -> None:
    shade = random_shade(np.random.default_rng(seed), name)
    assert nearest_color(shade) == name
    assert max(abs(a - b) for a, b in zip(shade, COLORS[name], strict=True)) <= SHADE


@given(SEEDS)
def test_a_subject_has_an_accessory_and_two_colours_on_its_body(seed: int) -> None:
    look = random_subject(np.random.default_rng(seed)).look
    body, second, _ = look.color_names()
    assert look.accessory in ACCESSORIES[1:]
    assert body != second


def test_random_scenes_show_everything_but_the_styles_kept_back() -> None:
    scenes = [_scene(seed) for seed in range(600)]
    assert {thing.kind for scene in scenes for thing in scene.things} == set(CLASSES)
    assert {len(scene.things) for scene in scenes} == {1, 2, 3}
    assert {scene.style for scene in scenes} == {"none", *NAMED_STYLES}
    assert not {scene.style for scene in scenes} & set(UNNAMED_STYLES)
    assert any(len({thing.kind for thing in scene.things}) < len(scene.things) for scene in scenes)


def test_the_default_distribution_leaves_the_old_series_as_it_was() -> None:
    for index in range(50):
        assert scene_number(11, index) == random_scene(np.random.default_rng([11, index]))
    first = scene_number(11, 0)
    assert [thing.kind for thing in first.things] == ["mug"]
    assert (first.background, first.seed) == ("night", 792406699)


def test_a_distribution_says_how_many_things_and_how_small() -> None:
    distribution = SceneDistribution(counts=(0.2, 0.3, 0.5), small_share=0.4)
    scenes = [scene_number(12, index, distribution) for index in range(1000)]
    shares = np.bincount([len(scene.things) for scene in scenes], minlength=4)[1:] / len(scenes)
    np.testing.assert_allclose(shares, distribution.counts, atol=0.05)
    for count in (1, 2):
        sizes = [thing.size for scene in scenes if len(scene.things) == count for thing in scene.things]
        small = np.array(sizes) < HALF_SIZES[count][0]
        assert 0.3 < small.mean() < 0.5
        assert min(sizes) >= HALF_SIZES[3][0]
    for scene in scenes:
        for thing in scene.things:
            assert 1.05 * thing.size <= thing.x <= 1 - 1.05 * thing.size
            assert 1.7 * thing.size <= thing.y <= 1 - thing.size


@pytest.mark.parametrize("values", [{"counts": (0.5, 0.5, 0.5)}, {"counts": (0.5, 0.5)}, {"small_share": 1.5}])
def test_shares_that_are_no_probabilities_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        SceneDistribution(**values)
