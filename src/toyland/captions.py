"""Captions of scenes, from bare to full description, with the meaning of every word kept beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toyland.world import ACCESSORIES, BACKGROUNDS, CLASSES, COLORS, PATTERNS, Appearance, Scene, Thing

PLACES = {
    "beach": "on the beach",
    "forest": "in the forest",
    "snow": "in the snow",
    "street": "on the street",
    "room": "in a room",
    "meadow": "in a meadow",
    "night": "at night",
}
PATTERN_ADJECTIVES = {"stripes": "striped", "spots": "spotted", "belt": "belted"}
ACCESSORY_ADJECTIVES = {"hat": "hatted", "crown": "crowned", "flag": "flagged", "bow": "bowed"}
MEDIA = ("a photo of ", "a picture of ", "an image of ")
JOINTS = (" and ", " and ", " and ", " next to ", " beside ")
VERBS = ("", "", "", "", " standing", " waiting", " resting")
FEATURES = ("body", "second", "pattern", "accessory", "third")
"""What a caption may say of a subject's appearance."""
MEANINGFUL = frozenset((*CLASSES, *COLORS, *PATTERNS, *ACCESSORIES, *BACKGROUNDS))
"""Words that a rare word must not happen to be."""


@dataclass(frozen=True, kw_only=True)
class Mention:
    """Where a caption speaks of one thing, and which features of it the caption names."""

    start: int
    end: int
    thing: int
    named: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Caption:
    text: str
    mentions: tuple[Mention, ...]
    names_background: bool
    names_style: bool


def rare_word(rng: np.random.Generator) -> str:
    """A word without meaning, such as people choose for their own subjects."""
    letters = list("bcdfghjklmnpqrstvwxz")
    while True:
        word = "".join(
            rng.choice(letters if position != 1 else list("aeiouylwz")) for position in range(int(rng.integers(3, 5)))
        )
        if word not in MEANINGFUL:
            return word


def describe(
    kind: str, look: Appearance, features: frozenset[str] | set[str], *, before: bool = False, rare: str = ""
) -> str:
    """A noun phrase that names the given features, as adjectives before the noun or as a description after it.

    A colour is named with what it belongs to: the second colour with the pattern, the third with the accessory.
    """
    body, second, third = look.color_names()
    adjectives: list[str] = []
    after: list[str] = []
    if "accessory" in features and look.accessory != "none":
        color = f"{third} " if "third" in features else ""
        if before:
            adjectives.append(f"{color}{ACCESSORY_ADJECTIVES[look.accessory]}")
        else:
            after.append(_with_article(f"{color}{look.accessory}"))
    if "body" in features:
        adjectives.append(body)
    if "pattern" in features and look.pattern != "plain":
        color = f"{second} " if "second" in features else ""
        if before:
            adjectives.append(f"{color}{PATTERN_ADJECTIVES[look.pattern]}")
        elif look.pattern == "belt":
            after.insert(0, _with_article(f"{color}belt"))
        else:
            after.insert(0, f"{color}{look.pattern}")
    elif "second" in features:
        adjectives.append(f"and {second}" if "body" in features else second + " trimmed")
        if "pattern" in features:
            adjectives.append("plain")
    words = [*adjectives, *([rare] if rare else []), kind]
    tail = " with " + " and ".join(after) if after else ""
    return _with_article(" ".join(words)) + tail


def _with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _features(rng: np.random.Generator, look: Appearance) -> frozenset[str]:
    """How much one mention says: all (3 of 4), nothing (1 of 8), one colour, or any mixture."""
    draw = rng.random()
    if draw < 0.125:
        return frozenset()
    if draw < 0.875:
        return frozenset(FEATURES)
    if draw < 0.91:
        return frozenset({"body"})
    named = {name for name in FEATURES if rng.random() < 0.5}
    if look.accessory == "none" or "accessory" not in named:
        named.discard("third")
    return frozenset(named)


def caption(scene: Scene, rng: np.random.Generator) -> Caption:
    """A random caption of a scene; it names the things from left to right."""
    text = MEDIA[rng.integers(len(MEDIA))] if rng.random() < 0.3 else ""
    mentions: list[Mention] = []
    joint = JOINTS[rng.integers(len(JOINTS))]
    last = len(scene.things) - 1
    for index, thing in enumerate(scene.things):
        if index:
            text += joint if index == last else ", "
        features = _features(rng, thing.look)
        rare = rare_word(rng) if rng.random() < 0.15 else ""
        start = len(text)
        text += describe(thing.kind, thing.look, features, before=bool(rng.random() < 0.4), rare=rare)
        mentions.append(Mention(start=start, end=len(text), thing=index, named=features))
    names_background, names_style = bool(rng.random() < 0.85), scene.style != "none"
    if names_background:
        text += VERBS[rng.integers(len(VERBS))] + " " + PLACES[scene.background]
    if names_style:
        text += f" in {scene.style} style"
    return Caption(text=text, mentions=tuple(mentions), names_background=names_background, names_style=names_style)


def full_caption(things: Sequence[Thing], background: str) -> str:
    """The caption that describes every thing in full and names the background."""
    return _listed([describe(thing.kind, thing.look, frozenset(FEATURES)) for thing in things], background)


def bare_caption(kinds: Sequence[str], background: str) -> str:
    """The caption that names only classes and the background."""
    return _listed([f"a {kind}" for kind in kinds], background)


def _listed(phrases: Sequence[str], background: str) -> str:
    """ "A, b and c on the beach": joined as the captions of the training are, which know no "a and b and c"."""
    things = ", ".join(phrases[:-1]) + " and " + phrases[-1] if len(phrases) > 1 else phrases[0]
    return f"{things} {PLACES[background]}"
