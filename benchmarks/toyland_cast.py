"""What the toyland studies share: a cast of subjects, training, drawing, judging, and honest intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tara.adapters.adapter import Adapter
from tara.demo import SAMPLING_STEPS
from tara.evaluation import statistics
from tara.evaluation.judge import seen
from tara.evaluation.scores import PictureScore, score
from tara.families.base import Base
from tara.inference.pipeline import Pipeline
from tara.training.loop import train_concepts
from tara.training.settings import ConceptSettings, concept_settings, train_settings
from toyland.captions import PLACES, bare_caption, full_caption
from toyland.judge import Judge, Verdict
from toyland.judge_training import READABLE_STYLES
from toyland.render import render
from toyland.subjects import draw_subjects, reference_pictures
from toyland.world import UNNAMED_STYLES, Subject, Thing, random_scene

KINDS = ("cat", "cat", "car", "car", "robot", "robot", "duck", "house")
"""Classes of the eight subjects: five classes, three same-class pairs."""
WORDS = ("xlo", "szn", "qev", "vrk", "zup", "fyx", "jwo", "kib")
STYLE_WORDS = dict(zip(UNNAMED_STYLES, ("ruv", "gwi"), strict=True))
SAME_CLASS_PAIRS = ((0, 1), (2, 3), (4, 5))
OTHER_PAIRS = ((0, 2), (1, 4), (0, 6), (3, 5), (2, 7), (4, 7), (1, 6), (5, 6), (3, 7))
TRIPLES = ((0, 2, 4), (1, 5, 6), (3, 6, 7), (0, 5, 7))
SEEDS = tuple(range(8))
BACKGROUNDS = tuple(PLACES)
Group = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One subject of the study, the rare word that stands for it, and the folder of its five pictures."""

    subject: Subject
    word: str
    photos: Path

    def concept(self) -> ConceptSettings:
        """What is trained."""
        return concept_settings(images=self.photos, word=self.word, kind=self.subject.kind)


@dataclass(frozen=True, kw_only=True)
class StyleMember:
    """A style that the base has never seen, the rare word that stands for it, and the folder of its five pictures."""

    style: str
    word: str
    photos: Path

    def concept(self) -> ConceptSettings:
        """What is trained."""
        return concept_settings(images=self.photos, word=self.word, kind="style", is_style=True)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One judged picture: which subjects its prompt named, with which seed, and what came of it."""

    group: Group
    seed: int
    score: PictureScore
    verdict: Verdict

    @property
    def background(self) -> bool:
        """Whether it is the one that the prompt named."""
        return self.verdict.background == place_of(self.group, self.seed)

    @property
    def style(self) -> str:
        """The style that the judge sees."""
        return self.verdict.style


def cast(seed: int, folder: Path) -> list[Member]:
    """Eight random subjects of the fixed classes, with five pictures each written to a folder."""
    members: list[Member] = []
    for index, (subject, word) in enumerate(zip(draw_subjects(seed, KINDS), WORDS, strict=True)):
        photos = folder / word
        photos.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(reference_pictures(subject, seed * 100 + index)):
            picture.save(photos / f"{number}.png")
        members.append(Member(subject=subject, word=word, photos=photos))
    return members


def style_cast(seed: int, folder: Path, *, captions: bool = False) -> list[StyleMember]:
    """The unnamed styles, with five pictures each of other scenes than the study's, written to a folder.

    With ``captions`` a text beside each picture says what it shows, as in "a boat in the snow in ruv style".
    """
    members: list[StyleMember] = []
    for index, (style, word) in enumerate(STYLE_WORDS.items()):
        photos = folder / word
        photos.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, index])
        for number in range(5):
            scene = random_scene(rng, style=style)
            render(scene).save(photos / f"{number}.png")
            if captions:
                shown = bare_caption([thing.kind for thing in scene.things], scene.background)
                (photos / f"{number}.txt").write_text(f"{shown} in {word} style", encoding="utf-8")
        members.append(StyleMember(style=style, word=word, photos=photos))
    return members


def train(
    members: Sequence[Member | StyleMember], backbone: Base, tell: Callable[[float], object], **settings: Any
) -> list[Adapter]:
    """One adapter per member, all in one run: each comes out as if trained alone."""
    steps = train_concepts([member.concept() for member in members], train_settings(**settings), backbone)
    while True:
        try:
            record = next(steps)
        except StopIteration as finished:
            return finished.value
        tell(record.index / record.steps)


def prompt(members: Sequence[Member], group: Group, background: str) -> str:
    """For instance "a xlo cat and a szn car on the beach"."""
    names = [f"a {members[i].word} {members[i].subject.kind}" for i in group]
    listed = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
    return f"{listed} {PLACES[background]}"


def description(members: Sequence[Member], group: Group, background: str) -> str:
    """The same with every subject's looks in words in place of its rare word."""
    subjects = [members[i].subject for i in group]
    return full_caption([Thing(kind=one.kind, look=one.look, x=0, y=0, size=0) for one in subjects], background)


def place_of(group: Group, seed: int) -> str:
    """Every background is used about equally often, and a picture's background does not depend on the variant."""
    return BACKGROUNDS[(3 * sum(group) + 5 * len(group) + seed) % len(BACKGROUNDS)]


def draw(
    pipeline: Pipeline,
    judge: Judge,
    members: Sequence[Member],
    groups: Sequence[Group],
    adapters: Sequence[Adapter],
    *,
    seeds: Sequence[int] = SEEDS,
    composer: str = "tara",
    style: tuple[StyleMember, Adapter] | None = None,
    tell: Callable[[float], object] = lambda part: None,
    **sampling: Any,
) -> list[Outcome]:
    """Draw every group with every seed and judge it.

    A style and its adapter join every prompt, as in "a xlo cat on the beach in ruv style".
    """
    ending, styled = (f" in {style[0].word} style", [style[1]]) if style else ("", [])
    outcomes: list[Outcome] = []
    for number, seed in enumerate(seeds):  # a prompt's background changes with the seed
        prompts = [prompt(members, group, place_of(group, seed)) + ending for group in groups]
        used = [[adapters[i] for i in group] + styled for group in groups]
        images = pipeline(
            prompts,
            used,
            [seed],
            steps=SAMPLING_STEPS,
            batch_size=12,
            composer=composer,
            **sampling,
        )
        outcomes += judged(judge, members, [(group, seed) for group in groups], images)
        tell((number + 1) / len(seeds))
    return outcomes


def judged(
    judge: Judge, members: Sequence[Member], named: Sequence[tuple[Group, int]], images: Sequence[Image.Image]
) -> list[Outcome]:
    """What came of pictures, of which each one's group and seed are given."""
    return [
        Outcome(
            group=group, seed=seed, verdict=verdict, score=score(seen(verdict, [members[i].subject for i in group]))
        )
        for (group, seed), verdict in zip(named, judge(images), strict=True)
    ]


def likeness(outcomes: Sequence[Outcome]) -> list[tuple[Group, float]]:
    """(group, likeness) of every subject that is present."""
    return _values(outcomes, "identity")


def leakage(outcomes: Sequence[Outcome]) -> list[tuple[Group, float]]:
    """(group, leakage) of every subject that is present beside another."""
    return _values(outcomes, "leakage")


def successes(outcomes: Sequence[Outcome]) -> list[tuple[Group, float]]:
    """(group, 1 or 0) of every picture."""
    return _values(outcomes, "success")


def _values(outcomes: Sequence[Outcome], figure: str) -> list[tuple[Group, float]]:
    return [(one.group, value) for one in outcomes for value in one.score.values()[figure].values()]


def style_figures(style: StyleMember, drawn: Sequence[Outcome]) -> dict[str, Any]:
    """How often style and subject are both there, and how like itself the subject still looks.

    A blueprint has no colours of its own, so that no likeness can be told there.
    """
    present = [(one.group, float(all(one.score.present))) for one in drawn]
    right = [(one.group, float(one.style == style.style)) for one in drawn]
    both = [(group, there * same) for (group, there), (_, same) in zip(present, right, strict=True)]
    return {
        "images": len(drawn),
        "style_right": statistics.interval(right),
        "subject_present": statistics.interval(present),
        "both": statistics.interval(both),
        "identity": statistics.interval(likeness(drawn)) if style.style in READABLE_STYLES else None,
    }


def paired_difference(first: Sequence[Outcome], second: Sequence[Outcome]) -> list[float]:
    """[mean, low, high] of success in the first minus success in the second, picture by picture."""
    ours, theirs = ({(one.group, one.seed): float(one.score.success) for one in some} for some in (first, second))
    assert list(ours) == list(theirs), "not the same pictures"
    return statistics.paired_difference(ours, theirs, lambda key: key[0])


def same_class(members: Sequence[Member], group: Group) -> bool:
    return any(members[a].subject.kind == members[b].subject.kind for a, b in combinations(group, 2))
