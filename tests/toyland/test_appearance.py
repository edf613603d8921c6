"""Described appearance: all attributes of all things, judged image by image."""

from dataclasses import replace

import pytest

from toyland.appearance import (
    ATTRIBUTES,
    described_scenes,
    described_shares,
    matched,
    right_attributes,
)
from toyland.judge import Finding, Verdict
from toyland.subjects import unerring_finding
from toyland.world import Scene, Subject, Thing


def _seen(thing: Thing) -> Finding:
    return unerring_finding(Subject(kind=thing.kind, look=thing.look), x=thing.x, y=thing.y, size=thing.size)


def _verdict(*findings: Finding) -> Verdict:
    return Verdict(things=tuple(sorted(findings, key=lambda f: f.x)), background="snow", style="none")


@pytest.fixture(params=[1, 2, 3])
def scene(request: pytest.FixtureRequest) -> Scene:
    return described_scenes(5, request.param, 1)[0]


def test_described_scenes_are_a_function_of_seed_and_number() -> None:
    assert described_scenes(5, 2, 3) == described_scenes(5, 2, 4)[:3]
    assert described_scenes(5, 2, 1) != described_scenes(6, 2, 1)
    assert [len(scene.things) for scene in described_scenes(5, 3, 4)] == [3] * 4


def test_an_image_of_what_was_described_is_right_whatever_the_order(scene: Scene) -> None:
    places = [thing.x for thing in scene.things]
    moved = [replace(_seen(thing), x=x) for thing, x in zip(scene.things, reversed(places), strict=True)]
    assert described_shares([scene], [_verdict(*moved)]) == {"all": 1.0, "classes": 1.0, "attributes": 1.0}


def test_one_wrong_attribute_of_one_thing_makes_the_image_wrong(scene: Scene) -> None:
    seen = [_seen(thing) for thing in scene.things]
    seen[-1] = replace(seen[-1], third=(0, 0, 0) if scene.things[-1].look.color_names()[2] != "black" else (255, 0, 0))
    shares = described_shares([scene], [_verdict(*seen)])
    count = len(ATTRIBUTES) * len(scene.things)
    assert shares == {"all": 0.0, "classes": 1.0, "attributes": round((count - 1) / count, 4)}


def test_a_missing_thing_is_no_class_and_all_wrong(scene: Scene) -> None:
    shares = described_shares([scene], [_verdict(*[_seen(thing) for thing in scene.things[1:]])])
    assert shares["all"] == shares["classes"] == 0


def test_no_finding_counts_for_two_things() -> None:
    scene = described_scenes(5, 2, 1)[0]
    first = scene.things[0]
    twins = (first, replace(scene.things[1], kind=first.kind))
    found = matched(twins, _verdict(_seen(first)))
    assert found == [_seen(first), None]
    found = matched(twins, _verdict(*[_seen(thing) for thing in twins]))
    assert found == [_seen(thing) for thing in twins]


def test_an_absent_accessory_has_no_colour() -> None:
    thing = described_scenes(5, 1, 1)[0].things[0]
    bare = replace(thing, look=replace(thing.look, accessory="none"))
    assert right_attributes(_seen(bare), bare.look) == dict.fromkeys(("body", "second", "pattern", "accessory"), True)
    assert right_attributes(None, thing.look) == dict.fromkeys(ATTRIBUTES, False)
