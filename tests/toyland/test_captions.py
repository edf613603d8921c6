"""A caption says what is true, and knows which of its words say it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toyland.captions import (
    ACCESSORY_ADJECTIVES,
    FEATURES,
    MEANINGFUL,
    PATTERN_ADJECTIVES,
    PLACES,
    Caption,
    bare_caption,
    caption,
    describe,
    full_caption,
    rare_word,
)
from toyland.world import (
    ACCESSORIES,
    BACKGROUNDS,
    CLASSES,
    COLORS,
    NAMED_STYLES,
    PATTERNS,
    Scene,
    place,
    random_scene,
    random_subject,
)

SEEDS = st.integers(0, 2**32 - 1)
OWN_WORDS = {
    *("a", "an", "and", "in", "on", "at", "the", "of", "with", "next", "to", "beside"),
    *("photo", "picture", "image", "style", "standing", "waiting", "resting", "trimmed"),
    *CLASSES,
    *COLORS,
    *PATTERNS,
    *ACCESSORIES,
    *PATTERN_ADJECTIVES.values(),
    *ACCESSORY_ADJECTIVES.values(),
    *" ".join(PLACES.values()).split(),
    *NAMED_STYLES,
}


def _captioned(seed: int) -> tuple[Scene, Caption]:
    rng = np.random.default_rng(seed)
    scene = random_scene(rng)
    return scene, caption(scene, rng)


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


@given(SEEDS)
def test_every_thing_is_mentioned_by_its_class_from_left_to_right(seed: int) -> None:
    scene, said = _captioned(seed)
    assert [mention.thing for mention in said.mentions] == list(range(len(scene.things)))
    for mention in said.mentions:
        phrase = said.text[mention.start : mention.end]
        assert phrase.split()[0] in ("a", "an")
        assert scene.things[mention.thing].kind in phrase.split()
    assert [word for word in _words(said.text) if word in CLASSES] == [thing.kind for thing in scene.things]


@given(SEEDS)
def test_a_mention_says_the_features_that_it_names_and_no_other_colours(seed: int) -> None:
    scene, said = _captioned(seed)
    for mention in said.mentions:
        look = scene.things[mention.thing].look
        words = said.text[mention.start : mention.end].split()
        colors = dict(zip(("body", "second", "third"), look.color_names(), strict=True))
        named = mention.named - ({"third"} if look.accessory == "none" else set())
        assert {word for word in words if word in COLORS} <= {colors[part] for part in named & colors.keys()}
        if "body" in named:
            assert colors["body"] in words
        if "pattern" in named and look.pattern != "plain":
            assert look.pattern in words or PATTERN_ADJECTIVES[look.pattern] in words
        if "accessory" in named and look.accessory != "none":
            assert look.accessory in words or ACCESSORY_ADJECTIVES[look.accessory] in words


@given(SEEDS)
def test_background_and_style_are_named_where_the_caption_says_so(seed: int) -> None:
    scene, said = _captioned(seed)
    assert (PLACES[scene.background] in said.text) == said.names_background
    assert said.names_style == (scene.style != "none")
    assert said.text.endswith(f"in {scene.style} style") == said.names_style


@given(SEEDS)
def test_a_full_description_names_every_attribute(seed: int) -> None:
    scene = random_scene(np.random.default_rng(seed))
    for thing in scene.things:
        look = thing.look
        for before in (False, True):
            words = describe(thing.kind, look, frozenset(FEATURES), before=before).split()
            body, second, third = look.color_names()
            assert {thing.kind, body, second} <= set(words)
            assert {look.pattern, PATTERN_ADJECTIVES.get(look.pattern)} & set(words)
            if look.accessory != "none":
                assert third in words
                assert {look.accessory, ACCESSORY_ADJECTIVES[look.accessory]} & set(words)


@given(SEEDS)
def test_two_looks_that_are_named_alike_are_described_alike(seed: int) -> None:
    thing = random_scene(np.random.default_rng(seed)).things[0]
    centres = [COLORS[name] for name in thing.look.color_names()]
    pure = replace(thing.look, body=centres[0], second=centres[1], third=centres[2])
    assert describe(thing.kind, pure, frozenset(FEATURES)) == describe(thing.kind, thing.look, frozenset(FEATURES))


@given(SEEDS)
def test_whole_captions_name_things_in_order_and_the_background(seed: int) -> None:
    scene = random_scene(np.random.default_rng(seed))
    kinds = [thing.kind for thing in scene.things]
    for text in (full_caption(scene.things, scene.background), bare_caption(kinds, scene.background)):
        assert [word for word in _words(text) if word in CLASSES] == kinds
        assert text.endswith(PLACES[scene.background])


def test_three_things_are_listed_with_commas_and_one_and() -> None:
    scene = next(scene for seed in range(99) if len((scene := random_scene(np.random.default_rng(seed))).things) == 3)
    phrases = [describe(thing.kind, thing.look, frozenset(FEATURES)) for thing in scene.things]
    expected = f"{phrases[0]}, {phrases[1]} and {phrases[2]} {PLACES[scene.background]}"
    assert full_caption(scene.things, scene.background) == expected
    assert bare_caption(["cat", "dog", "cat"], "snow") == "a cat, a dog and a cat in the snow"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_training_says_full_captions_too(count: int) -> None:
    rng = np.random.default_rng(count)
    scene = place(rng, [random_subject(rng) for _ in range(count)], background="snow")
    whole = full_caption(scene.things, scene.background)
    assert any(caption(scene, np.random.default_rng(seed)).text == whole for seed in range(2000))


def test_rare_words_stand_before_the_class_some_of_the_time() -> None:
    mentions = rare = 0
    for seed in range(400):
        scene, said = _captioned(seed)
        for mention in said.mentions:
            words = said.text[mention.start : mention.end].split()
            strange = [word for word in words if word not in OWN_WORDS]
            mentions += 1
            rare += bool(strange)
            assert len(strange) <= 1
            for word in strange:
                assert words[words.index(word) + 1] == scene.things[mention.thing].kind
    assert 0.1 < rare / mentions < 0.2


def test_captions_reach_from_bare_to_full_description() -> None:
    named = [mention.named for seed in range(200) for mention in _captioned(seed)[1].mentions]
    for features in (frozenset(), frozenset(FEATURES), frozenset({"body"})):
        assert named.count(features) > 0.01 * len(named)


def test_every_background_has_a_phrase() -> None:
    assert set(PLACES) == set(BACKGROUNDS)


@given(SEEDS)
def test_a_rare_word_is_short_and_lower_case(seed: int) -> None:
    word = rare_word(np.random.default_rng(seed))
    assert word not in MEANINGFUL
    assert 3 <= len(word) <= 4
    assert word.isalpha()
    assert word.islower()
