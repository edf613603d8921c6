"""What exists in toyland: classes, colours, patterns, accessories, backgrounds, styles, and scenes made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

CLASSES = ("cat", "dog", "rabbit", "duck", "robot", "car", "boat", "mug", "house", "tower")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (206, 38, 40),
    "orange": (242, 138, 28),
    "yellow": (246, 222, 62),
    "green": (48, 158, 66),
    "blue": (44, 92, 208),
    "purple": (132, 58, 172),
    "pink": (246, 152, 194),
    "brown": (122, 76, 42),
    "white": (242, 242, 242),
    "gray": (142, 142, 146),
    "black": (34, 34, 40),
}
PATTERNS = ("plain", "stripes", "spots", "belt")
ACCESSORIES = ("none", "hat", "crown", "flag", "bow")
BACKGROUNDS = ("beach", "forest", "snow", "street", "room", "meadow", "night")
NAMED_STYLES = ("pixel", "pencil", "sepia")
UNNAMED_STYLES = ("scanline", "blueprint")
"""Styles that no caption of the base names and no picture of its training shows: kept to be learned as concepts."""
STYLES = ("none", *NAMED_STYLES, *UNNAMED_STYLES)

SHADE = 18
"""How far a channel of a shade may lie from its colour's centre, in units of 1/255."""

Rgb = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """How one subject looks: everything about it except its shape (class) and its place."""

    body: Rgb
    second: Rgb
    third: Rgb
    """The accessory's colour; without an accessory it is not visible."""
    pattern: str
    accessory: str

    def color_names(self) -> tuple[str, str, str]:
        return nearest_color(self.body), nearest_color(self.second), nearest_color(self.third)


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object of a scene; the body's centre `x`, `y` and half its height `size` are fractions of the picture."""

    kind: str
    look: Appearance
    x: float
    y: float
    size: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A whole picture; `things` stand from left to right, and captions name them in that order."""

    background: str
    things: tuple[Thing, ...]
    style: str = "none"
    seed: int = 0
    """Chooses the details of the background that no caption names."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A fixed individual: a class and an appearance, to be learned from a few pictures."""

    kind: str
    look: Appearance


def nearest_color(rgb: Rgb) -> str:
    """The name of the colour whose centre is nearest to `rgb`."""
    return min(COLORS, key=lambda name: sum((a - b) ** 2 for a, b in zip(COLORS[name], rgb, strict=True)))


def random_shade(rng: np.random.Generator, name: str) -> Rgb:
    """A continuous shade of a named colour."""
    red, green, blue = (int(np.clip(c + rng.integers(-SHADE, SHADE + 1), 0, 255)) for c in COLORS[name])
    return red, green, blue


def random_appearance(rng: np.random.Generator) -> Appearance:
    """An appearance with two different colours on the body and, four times in five, an accessory."""
    names = list(COLORS)
    body, second = rng.choice(len(names), size=2, replace=False)
    return Appearance(
        body=random_shade(rng, names[body]),
        second=random_shade(rng, names[second]),
        third=random_shade(rng, names[rng.integers(len(names))]),
        pattern=str(rng.choice(PATTERNS)),
        accessory=str(rng.choice(ACCESSORIES)),
    )


def random_subject(rng: np.random.Generator, kind: str | None = None) -> Subject:
    """A subject with an accessory, of a given or a random class."""
    while (look := random_appearance(rng)).accessory == "none":
        pass
    return Subject(kind=kind or str(rng.choice(CLASSES)), look=look)


HALF_SIZES = {1: (0.24, 0.30), 2: (0.18, 0.21), 3: (0.135, 0.15)}
"""Half an object's height, as a fraction of the image, by the number of objects."""


@dataclass(frozen=True, kw_only=True)
class SceneDistribution:
    """How often random scenes hold one, two or three things, and how often one or two are small."""

    counts: tuple[float, float, float] = (0.4, 0.5, 0.1)
    small_share: float = 0.0
    """Share of the scenes of one or two things that are smaller than `HALF_SIZES` says, down to the size of three."""

    def __post_init__(self) -> None:
        """TOML has lists only, and `Generator.choice` refuses the shares late and without their name."""
        object.__setattr__(self, "counts", tuple(self.counts))
        if len(self.counts) != 3 or min(self.counts) < 0 or abs(sum(self.counts) - 1) > 1e-6:
            raise ValueError(f"counts = {list(self.counts)}: three shares that sum to 1 are needed")
        if not 0 <= self.small_share <= 1:
            raise ValueError(f"small_share = {self.small_share}: a share between 0 and 1 is needed")


TRAINING_SCENES = SceneDistribution()
"""The scenes of the first three versions of the base."""


def place(
    rng: np.random.Generator, subjects: list[Subject], *, sizes: tuple[float, float] | None = None, **scene: Any
) -> Scene:
    """Put subjects side by side, left to right, at random sizes and places that keep them apart and whole.

    `sizes` is the range of half an object's height, that of `HALF_SIZES` unless given.
    """
    count = len(subjects)
    things: list[Thing] = []
    for index, subject in enumerate(subjects):
        size = rng.uniform(*(sizes or HALF_SIZES[count]))
        slack = max(0.0, 0.5 / count - 1.05 * size)
        x = (index + 0.5) / count + rng.uniform(-slack, slack)
        low, high = max(0.45, 1.7 * size), 0.97 - size
        y = rng.uniform(max(low, high - 0.16), high)
        things.append(Thing(kind=subject.kind, look=subject.look, x=x, y=y, size=size))
    return Scene(things=tuple(things), **scene)


def random_scene(
    rng: np.random.Generator,
    counts: tuple[float, float, float] = TRAINING_SCENES.counts,
    style: str | None = None,
    small_share: float = 0.0,
) -> Scene:
    """A scene of the base's training distribution: one to three objects, now and then in a named style."""
    count = int(rng.choice(3, p=counts)) + 1
    subjects = [Subject(kind=str(rng.choice(CLASSES)), look=random_appearance(rng)) for _ in range(count)]
    if count > 1 and rng.random() < 0.15:  # same-class pairs more often than chance brings them
        subjects[1] = Subject(kind=subjects[0].kind, look=subjects[1].look)
    if style is None:
        style = str(rng.choice(NAMED_STYLES)) if rng.random() < 0.12 else "none"
    small = small_share > 0 and rng.random() < small_share  # without small scenes no number is taken from `rng`
    sizes = (HALF_SIZES[3][0], HALF_SIZES[count][0]) if small and count < 3 else None
    background, seed = str(rng.choice(BACKGROUNDS)), int(rng.integers(2**31))
    return place(rng, subjects, sizes=sizes, background=background, style=style, seed=seed)
