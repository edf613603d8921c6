"""What the studies on the embedded base share: its cast of subjects, training, generation, the judge's scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress, TaskID, TimeElapsedColumn, TimeRemainingColumn

import toyland
from tara.adapters.adapter import Adapter
from tara.evaluation import statistics
from tara.evaluation.scores import Detections, ImageScore, score
from tara.families.base import Base
from tara.families.loading import load_base
from tara.inference.pipeline import Pipeline
from tara.training.concept_settings import ConceptSettings
from tara.training.inputs import check_inputs
from tara.training.loop import Training
from tara.training.settings import TrainSettings, concept_settings, train_settings
from toyland.captions import PLACES, bare_caption, full_caption
from toyland.judge import Judge, Verdict
from toyland.judge_training import READABLE_STYLES
from toyland.render import render
from toyland.subjects import detections, draw_subjects, reference_pictures
from toyland.world import UNNAMED_STYLES, Subject, Thing, random_scene

SETTINGS: dict[str, Any] = {
    "base": str(toyland.BASE),
    "rank": 8,
    "steps": 400,
    "batch_size": 4,
    "learning_rate": 3e-3,
    "lr_scheduler": "cosine",
    "flip": False,  # toyland's ducks look to the left
}
"""Training settings of every study; all others are the package's defaults."""
SAMPLING_STEPS = 25
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
OnProgress = Callable[[float], object]
"""Called with the part that is done, 0 to 1."""


class World:
    """The embedded base, a pipeline on it, and the judge of its images."""

    def __init__(self) -> None:
        self.base: Base = load_base(toyland.BASE, device="cpu")
        self.pipeline, self.judge = Pipeline(self.base), Judge.load(toyland.JUDGE)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One subject of the study, the rare word that stands for it, and the folder of its five photos."""

    subject: Subject
    word: str
    photos: Path

    def concept(self) -> ConceptSettings:
        """What is trained."""
        return concept_settings(images=self.photos, rare_word=self.word, class_word=self.subject.kind)


@dataclass(frozen=True, kw_only=True)
class StyleMember:
    """A style that is not in the base's training data, its rare word, and the folder of five images in that style."""

    style: str
    word: str
    photos: Path

    def concept(self) -> ConceptSettings:
        """What is trained."""
        return concept_settings(images=self.photos, rare_word=self.word, class_word="style", is_style=True)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One judged image: which subjects its prompt named, its seed, its scores and the judge's verdict."""

    group: Group
    seed: int
    score: ImageScore
    verdict: Verdict

    @property
    def background(self) -> bool:
        """Whether the background is the one that the prompt named."""
        return self.verdict.background == place_of(self.group, self.seed)

    @property
    def style(self) -> str:
        """The style that the judge reads."""
        return self.verdict.style


def progress() -> Progress:
    """A bar on the error stream, with the elapsed and the remaining time."""
    columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


def on_task(bar: Progress, task: TaskID, done: float = 0.0) -> OnProgress:
    """Reports the progress of one part of a task, after ``done`` parts of it."""
    return lambda part: bar.update(task, completed=done + part)


def cast(seed: int, folder: Path) -> list[Member]:
    """Eight random subjects of the fixed classes, with five photos each written to a folder."""
    members: list[Member] = []
    for index, (subject, word) in enumerate(zip(draw_subjects(seed, KINDS), WORDS, strict=True)):
        photos = folder / word
        photos.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(reference_pictures(subject, seed * 100 + index)):
            image.save(photos / f"{number}.png")
        members.append(Member(subject=subject, word=word, photos=photos))
    return members


def style_cast(seed: int, folder: Path, *, captions: bool = False) -> list[StyleMember]:
    """The unnamed styles, with five images each of other scenes than the study's, written to a folder.

    With ``captions`` a text file beside each image says what it shows, as in "a boat in the snow in ruv style".
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
    concepts: Sequence[ConceptSettings],
    base: Base,
    on_progress: OnProgress,
    training: type[Training] = Training,
    /,  # settings have a base too
    **settings: Any,
) -> list[Adapter]:
    """One adapter per concept, all in one run: each comes out as if trained alone."""
    run = training(check_inputs(concepts, train_settings(**settings), base))
    for record in run.steps():
        on_progress(record.index / record.steps)
    return run.adapters()


def prompt(members: Sequence[Member], group: Group, background: str) -> str:
    """For instance "a xlo cat and a szn car on the beach"."""
    names = [f"a {members[i].word} {members[i].subject.kind}" for i in group]
    listed = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
    return f"{listed} {PLACES[background]}"


def description(members: Sequence[Member], group: Group, background: str) -> str:
    """The same with every subject's appearance in words in place of its rare word."""
    subjects = [members[i].subject for i in group]
    return full_caption([Thing(kind=one.kind, look=one.look, x=0, y=0, size=0) for one in subjects], background)


def place_of(group: Group, seed: int) -> str:
    """Every background is used about equally often, and an image's background does not depend on the variant."""
    return BACKGROUNDS[(3 * sum(group) + 5 * len(group) + seed) % len(BACKGROUNDS)]


def generate(
    world: World,
    members: Sequence[Member],
    groups: Sequence[Group],
    adapters: Sequence[Adapter],
    *,
    seeds: Sequence[int] = SEEDS,
    style: tuple[StyleMember, Adapter] | None = None,
    on_progress: OnProgress = lambda part: None,
    **settings: Any,
) -> list[Outcome]:
    """Generate every group with every seed, and judge it; ``settings`` are those of `GenerationSettings`.

    A style and its adapter are added to every prompt, as in "a xlo cat on the beach in ruv style".
    """
    ending, styled = (f" in {style[0].word} style", [style[1]]) if style else ("", [])
    outcomes: list[Outcome] = []
    for number, seed in enumerate(seeds):  # a prompt's background changes with the seed
        prompts = [prompt(members, group, place_of(group, seed)) + ending for group in groups]
        used = [[adapters[i] for i in group] + styled for group in groups]
        images = world.pipeline(prompts, used, [seed], steps=SAMPLING_STEPS, batch_size=12, **settings)
        outcomes += judged(world.judge, members, [(group, seed) for group in groups], images)
        on_progress((number + 1) / len(seeds))
    return outcomes


def judged(
    judge: Judge, members: Sequence[Member], named: Sequence[tuple[Group, int]], images: Sequence[Image.Image]
) -> list[Outcome]:
    """The outcomes of images, of which each one's group and seed are given."""
    outcomes: list[Outcome] = []
    for (group, seed), verdict in zip(named, judge(images), strict=True):
        detected = Detections(**detections(verdict, [members[i].subject for i in group]))
        outcomes.append(Outcome(group=group, seed=seed, verdict=verdict, score=score(detected)))
    return outcomes


def likeness(outcomes: Sequence[Outcome]) -> list[tuple[Group, float]]:
    """(group, likeness) of every subject that is present."""
    return _values(outcomes, "identity")


def leakage(outcomes: Sequence[Outcome]) -> list[tuple[Group, float]]:
    """(group, leakage) of every subject that is present beside another."""
    return _values(outcomes, "leakage")


def successes(outcomes: Sequence[Outcome]) -> list[tuple[Group, float]]:
    """(group, 1 or 0) of every image."""
    return _values(outcomes, "success")


def _values(outcomes: Sequence[Outcome], figure: str) -> list[tuple[Group, float]]:
    return [(one.group, value) for one in outcomes for value in one.score.values()[figure].values()]


def style_figures(style: StyleMember, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """How often style and subject are both there, and how like itself the subject still looks.

    A blueprint has no colours of its own, so that no likeness can be measured there.
    """
    present = [(one.group, float(all(one.score.present))) for one in outcomes]
    right = [(one.group, float(one.style == style.style)) for one in outcomes]
    both = [(group, there * same) for (group, there), (_, same) in zip(present, right, strict=True)]
    return {
        "images": len(outcomes),
        "style_right": statistics.interval(right),
        "subject_present": statistics.interval(present),
        "both": statistics.interval(both),
        "identity": statistics.interval(likeness(outcomes)) if style.style in READABLE_STYLES else None,
    }


def paired_difference(first: Sequence[Outcome], second: Sequence[Outcome]) -> list[float]:
    """[mean, low, high] of success in the first minus success in the second, image by image."""
    ours, theirs = ({(one.group, one.seed): float(one.score.success) for one in some} for some in (first, second))
    assert list(ours) == list(theirs), "not the same images"
    return statistics.paired_difference(ours, theirs, lambda key: key[0])


def method_columns(settings: TrainSettings) -> dict[str, Any]:
    """What a result file says of the method of a training; its names are those of the committed results."""
    return {
        "targets": settings.targets,
        "tfm": settings.token_mask,
        "tal": settings.alignment_loss,
        "tal_weight": settings.alignment_weight,
    }


def same_class(members: Sequence[Member], group: Group) -> bool:
    """Whether two subjects of a group are of one class."""
    return any(members[a].subject.kind == members[b].subject.kind for a, b in combinations(group, 2))
