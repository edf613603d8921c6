"""Scenes are laid out so that every thing can be seen whole."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from toyland.world import (
    ACCESSORIES,
    CLASSES,
    COLORS,
    NAMED_STYLES,
    SHADE,
    UNNAMED_STYLES,
    Scene,
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
def test_things_stand_inside_the_picture(seed: int, count: int) -> None:
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
