"""A picture is a function of its scene, and everything in the scene can be seen in it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from toyland.render import SIZE, render
from toyland.scenes import rendered, scene_number
from toyland.world import (
    ACCESSORIES,
    BACKGROUNDS,
    CLASSES,
    PATTERNS,
    STYLES,
    Appearance,
    Scene,
    Subject,
    Thing,
    place,
)

LOOK = Appearance(body=(206, 38, 40), second=(246, 222, 62), third=(44, 92, 208), pattern="stripes", accessory="hat")
SEEN = 12
"""Least difference of a channel, of 255, that counts as a change."""


def _alone(look: Appearance = LOOK, kind: str = "cat", **scene: object) -> Scene:
    thing = Thing(kind=kind, look=look, x=0.5, y=0.62, size=0.27)
    return replace(Scene(background="snow", things=(thing,), seed=5), **scene)


def _pixels(scene: Scene) -> np.ndarray:
    return np.asarray(render(scene)).astype(int)


def _changed(first: Scene, second: Scene) -> int:
    return int((np.abs(_pixels(first) - _pixels(second)).max(2) > SEEN).sum())


def test_the_same_scene_gives_the_same_image() -> None:
    for index in range(20):
        first, second = (render(scene_number(3, index)).tobytes() for _ in range(2))
        assert first == second


def test_an_image_has_the_asked_size() -> None:
    assert render(_alone()).size == (SIZE, SIZE)
    assert render(_alone(), 128).size == (128, 128)
    assert render(_alone()).mode == "RGB"


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_looks_unlike_every_other(kind: str) -> None:
    others = [other for other in CLASSES if other != kind]
    assert min(_changed(_alone(kind=kind), _alone(kind=other)) for other in others) > 100


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(("attribute", "choices"), [("pattern", PATTERNS), ("accessory", ACCESSORIES)])
def test_every_pattern_and_accessory_shows_on_every_class(kind: str, attribute: str, choices: tuple[str, ...]) -> None:
    scenes = [_alone(replace(LOOK, **{attribute: choice}), kind) for choice in choices]
    changes = [_changed(a, b) for i, a in enumerate(scenes) for b in scenes[:i]]
    assert min(changes) >= 15


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("part", ["body", "second", "third"])
def test_every_colour_shows_on_every_class(kind: str, part: str) -> None:
    plain = replace(LOOK, pattern="plain")
    assert _changed(_alone(plain, kind), _alone(replace(plain, **{part: (48, 158, 66)}), kind)) >= 20


def test_without_an_accessory_its_colour_is_not_visible() -> None:
    bare = replace(LOOK, accessory="none")
    assert _changed(_alone(bare), _alone(replace(bare, third=(0, 255, 0)))) == 0


def test_every_background_and_style_changes_the_image() -> None:
    for attribute, choices in (("background", BACKGROUNDS), ("style", STYLES)):
        scenes = [_alone(**{attribute: choice}) for choice in choices]
        assert min(_changed(a, b) for i, a in enumerate(scenes) for b in scenes[:i]) > SIZE * SIZE // 5


def test_things_are_drawn_in_their_own_part_of_the_image() -> None:
    side = (np.arange(SIZE) + 0.5) / SIZE
    for index in range(30):
        scene = replace(scene_number(8, index), style="none")
        own = np.zeros((SIZE, SIZE), bool)
        for thing in scene.things:
            reach_x, reach_up = 1.2 * thing.size, 1.75 * thing.size
            rows = (side > thing.y - reach_up) & (side < thing.y + 1.1 * thing.size)
            own |= rows[:, None] & (np.abs(side - thing.x) < reach_x)[None]
        difference = np.abs(_pixels(scene) - _pixels(replace(scene, things=()))).max(2)
        assert not (difference[~own] > 0).any()


def test_a_subject_looks_the_same_wherever_it_stands() -> None:
    subject = Subject(kind="robot", look=LOOK)
    crops: list[np.ndarray] = []
    for x, y, background in ((0.5, 0.6, "beach"), (0.375, 0.65625, "forest"), (0.625, 0.6875, "night")):
        thing = Thing(kind=subject.kind, look=subject.look, x=x, y=y, size=0.25)
        picture = np.asarray(render(Scene(background=background, things=(thing,), seed=3), 640)).astype(int)
        cx, cy = round(x * 640), round(y * 640)
        crops.append(picture[cy - 10 : cy + 90, cx - 70 : cx + 70])  # inside the body's outline
    for other in crops[1:]:
        assert np.abs(crops[0] - other).mean() < 3


def test_background_details_follow_the_scenes_seed_only() -> None:
    rng = np.random.default_rng(1)
    subject = Subject(kind="mug", look=LOOK)
    scene = place(rng, [subject], background="street", seed=7)
    assert _changed(scene, replace(scene, seed=8)) > 100
    assert (_pixels(replace(scene, things=())) == _pixels(Scene(background="street", things=(), seed=7))).all()


def test_stored_images_are_the_scenes_of_the_series(tmp_path: Path) -> None:
    pictures = rendered(tmp_path, seed=4, count=3, workers=1)
    assert pictures.shape == (3, SIZE, SIZE, 3)
    for index in range(3):
        assert (pictures[index] == np.asarray(render(scene_number(4, index)))).all()
    (stored,) = tmp_path.iterdir()
    before = stored.stat().st_mtime_ns
    assert (rendered(tmp_path, seed=4, count=3, workers=1) == pictures).all()
    assert stored.stat().st_mtime_ns == before
