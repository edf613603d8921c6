"""The demo: two subjects learned from five pictures each, put into one picture in several ways, and judged."""

import json
import resource
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import toyland
from tara.adapters.adapter import Adapter
from tara.evaluation.judge import seen
from tara.evaluation.scores import PictureScore, score
from tara.families.base import Base
from tara.families.loading import load_base
from tara.inference.pipeline import Pipeline, SamplingStep
from tara.report.page import Grid, Row, Table, contact_sheet, page, png_bytes
from tara.storage.files import atomic_write, writable_folder
from tara.training.run.interrupts import TrainingInterrupted
from tara.training.run.run import run_recipe
from tara.training.settings import ConceptSettings, Recipe, concept_settings, train_settings
from toyland.judge import Judge
from toyland.subjects import reference_pictures
from toyland.world import Appearance, Subject

Tell = Callable[[str, float], object]
"""Told what is going on and which part of the whole demo is done, 0 to 1."""

PLACE = "on the beach"
SEEDS = tuple(range(8))
SHOWN_SEEDS = 6
SAMPLING_STEPS = 25
TRAINING_SHARE = 0.4  # of the demo's time for each of the two trainings; the rest draws


@dataclass(frozen=True, kw_only=True)
class Role:
    """A subject of the demo and the rare word that stands for it."""

    subject: Subject
    word: str
    photo_seed: int

    @property
    def name(self) -> str:
        """How a prompt calls it."""
        return f"{self.word} {self.subject.kind}"


CAST = (
    Role(
        word="xlo",
        photo_seed=1,
        subject=Subject(
            kind="cat",
            look=Appearance(
                body=(232, 134, 36), second=(246, 244, 238), third=(40, 84, 200), pattern="stripes", accessory="hat"
            ),
        ),
    ),
    Role(
        word="szn",
        photo_seed=2,
        subject=Subject(
            kind="robot",
            look=Appearance(
                body=(58, 160, 78), second=(246, 160, 198), third=(238, 214, 66), pattern="spots", accessory="crown"
            ),
        ),
    ),
)
BOTH = " and ".join(f"a {role.name}" for role in CAST)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One way to draw the cast: which adapters, how they are composed, and what a reader should know of it."""

    name: str
    heading: str
    training: str
    composer: str
    meaning: str


COLUMNS = (
    Column(
        name="tara",
        heading="tara",
        training="tara",
        composer="tara",
        meaning="both adapters, each on its own word",
    ),
    Column(
        name="tara_sum",
        heading="tara, masks off",
        training="tara",
        composer="sum",
        meaning="the same adapters without token masks",
    ),
    Column(
        name="plain_sum",
        heading="plain LoRA, summed",
        training="plain",
        composer="sum",
        meaning="plain LoRA of the same size and steps, added up",
    ),
)
TRAININGS: dict[str, dict[str, Any]] = {"tara": {}, "plain": {"token_mask": False, "alignment_loss": "off"}}
SETTINGS: dict[str, Any] = {
    "base": "toyland",
    "steps": 400,
    "batch_size": 4,
    "learning_rate": 3e-3,
    "lr_scheduler": "cosine",
    "flip": False,  # toyland's ducks look to the left
    "checkpoint_every": 0,
}
"""What both trainings of the demo share; everything else is the package's default."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One column's pictures, one per seed, and their scores."""

    images: tuple[Image.Image, ...]
    scores: tuple[PictureScore, ...]

    @property
    def success(self) -> float:
        """Share of pictures that show every subject with its own looks."""
        return float(np.mean([one.success for one in self.scores]))

    @property
    def identity(self) -> float:
        """Mean likeness of the subjects that are present; 0 when none is."""
        likes = [value for one in self.scores for value in one.values()["identity"].values()]
        return float(np.mean(likes)) if likes else 0.0


def run(out: Path, tell: Tell = lambda what, part: None) -> dict[str, Any]:
    """Make photos, train, draw, judge, and write ``index.html``, ``sheet.png`` and ``results.json`` into ``out``.

    Returns:
        what ``results.json`` holds: seconds, peak memory in MiB, success and identity of each column.

    Raises:
        TaraError: when ``out`` cannot be written.
        KeyboardInterrupt: on Ctrl-C; its trainings take a minute each, so the demo starts anew the next time.
    """
    begun = time.perf_counter()
    writable_folder(out)
    photos = _write_photos(out)
    backbone = load_base("toyland", device="cpu")
    adapters, training_seconds = _train(out, backbone, tell)
    drawn = _draw(
        backbone, adapters, lambda part: tell("Drawing", 2 * TRAINING_SHARE + part * (1 - 2 * TRAINING_SHARE))
    )
    results = {
        "seconds": {"training": round(training_seconds, 1), "total": round(time.perf_counter() - begun, 1)},
        "peak_memory_mib": round(_peak_memory_mib()),
        "columns": {
            name: {"success": round(column.success, 4), "identity": round(column.identity, 4)}
            for name, column in _columns(drawn).items()
        },
    }
    _write(out, photos, drawn, results)
    return results


def _write_photos(out: Path) -> list[list[Image.Image]]:
    """The training photos, as a user would have them: a folder of pictures for each subject."""
    photos: list[list[Image.Image]] = []
    for role in CAST:
        pictures = reference_pictures(role.subject, role.photo_seed)
        for index, picture in enumerate(pictures):
            atomic_write(writable_folder(out / "photos" / role.word) / f"{index:02d}.png", png_bytes(picture))
        photos.append(pictures)
    return photos


def _train(out: Path, backbone: Base, tell: Tell) -> tuple[dict[str, list[Adapter]], float]:
    """Both subjects at once, first as TARA, then as plain LoRA; the adapters and the seconds that it took."""
    begun = time.perf_counter()
    adapters: dict[str, list[Adapter]] = {}
    for number, (name, changes) in enumerate(TRAININGS.items()):
        settings = train_settings(**SETTINGS, **changes)
        steps = run_recipe(Recipe(settings=settings, concepts=_concepts(out, name)), backbone, overwrite=True)
        while True:
            try:
                record = next(steps)
            except StopIteration as finished:
                adapters[name] = finished.value
                break
            except TrainingInterrupted:
                # a resumed training would not go on with the demo
                raise KeyboardInterrupt from None
            tell(f"Training {name}", (number + record.index / record.steps) * TRAINING_SHARE)
    return adapters, time.perf_counter() - begun


def _concepts(out: Path, training: str) -> tuple[ConceptSettings, ...]:
    return tuple(
        concept_settings(
            images=out / "photos" / role.word,
            word=role.word,
            kind=role.subject.kind,
            out=out / "adapters" / f"{role.word}-{role.subject.kind}-{training}.safetensors",
        )
        for role in CAST
    )


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is drawn for one column: a prompt, the adapters, how they are composed, and who should be in the picture."""

    name: str
    prompt: str
    adapters: Sequence[Adapter]
    composer: str
    shown: tuple[Role, ...]


def _orders(adapters: dict[str, list[Adapter]]) -> list[Order]:
    """Each subject alone, then both in every column's way."""
    alone = [
        Order(name=role.word, prompt=f"a {role.name} {PLACE}", adapters=[adapter], composer="tara", shown=(role,))
        for role, adapter in zip(CAST, adapters["tara"], strict=True)
    ]
    together = [
        Order(
            name=one.name, prompt=f"{BOTH} {PLACE}", adapters=adapters[one.training], composer=one.composer, shown=CAST
        )
        for one in COLUMNS
    ]
    return alone + together


def _draw(backbone: Base, adapters: dict[str, list[Adapter]], tell: Callable[[float], object]) -> dict[str, Drawn]:
    """Every order's pictures for the same seeds, judged."""
    pipeline, judge, orders = Pipeline(backbone), Judge.load(toyland.JUDGE), _orders(adapters)
    drawn: dict[str, Drawn] = {}
    for number, order in enumerate(orders):

        def on_step(step: SamplingStep, number: int = number) -> None:
            tell((number + step.fraction) / len(orders))

        images = pipeline(
            order.prompt,
            order.adapters,
            SEEDS,
            steps=SAMPLING_STEPS,
            batch_size=len(SEEDS),
            composer=order.composer,
            on_step=on_step,
        )
        subjects = [role.subject for role in order.shown]
        scores = tuple(score(seen(verdict, subjects)) for verdict in judge(images))
        drawn[order.name] = Drawn(images=tuple(images), scores=scores)
    return drawn


def _columns(drawn: dict[str, Drawn]) -> dict[str, Drawn]:
    """The columns of the results: the subjects' own pictures count together as ``alone``."""
    alone = [drawn[role.word] for role in CAST]
    return {
        "alone": Drawn(
            images=tuple(image for column in alone for image in column.images),
            scores=tuple(one for column in alone for one in column.scores),
        ),
        **{column.name: drawn[column.name] for column in COLUMNS},
    }


def _write(out: Path, photos: list[list[Image.Image]], drawn: dict[str, Drawn], results: dict[str, Any]) -> None:
    grid = _grid(photos, drawn)
    atomic_write(out / "sheet.png", png_bytes(contact_sheet(grid, cell=192)))
    figures = tuple(
        (name, f"{column.success:.0%}", f"{column.identity:.2f}") for name, column in _columns(drawn).items()
    )
    table = Table(
        headings=("column", "success", "identity"),
        rows=figures,
        title="What the judge says",
        note=f"{len(SEEDS)} seeds. Success: every subject of the prompt is there with its own looks. "
        "Identity: how like itself a subject looks where it is there, 0 to 1.",
    )
    html = page(
        title=f"{BOTH} {PLACE}",
        lead="Two subjects, each learned from five pictures, in one picture. Every row is one seed.",
        grids=[grid],
        tables=[table],
        command=shlex.join(["tara", "demo", "--out", str(out)]),
    )
    atomic_write(out / "index.html", html.encode())
    atomic_write(out / "results.json", (json.dumps(results, indent=2) + "\n").encode())


def _grid(photos: list[list[Image.Image]], drawn: dict[str, Drawn]) -> Grid:
    """One row per seed; on its left a training photo of each subject, then the subjects alone, then together."""
    names = [*(role.word for role in CAST), *(column.name for column in COLUMNS)]
    rows = tuple(
        Row(
            images=(
                *(pictures[index % len(pictures)] for pictures in photos),
                *(drawn[name].images[index] for name in names),
            ),
            label=f"seed {SEEDS[index]}",
        )
        for index in range(SHOWN_SEEDS)
    )
    headings = (*(f"photos of {role.name}" for role in CAST), *(f"{role.name} alone" for role in CAST))
    figures = [f"success {drawn[name].success:.0%}, identity {drawn[name].identity:.2f}" for name in names]
    meanings = ["one adapter" for _ in CAST] + [column.meaning for column in COLUMNS]
    footers = [("",)] * len(CAST) + [(figure, meaning) for figure, meaning in zip(figures, meanings, strict=True)]
    return Grid(
        rows=rows,
        columns=(*headings, *(column.heading for column in COLUMNS)),
        footers=tuple(footers),
        title=f"{BOTH} {PLACE}",
    )


def _peak_memory_mib() -> float:
    """The most memory that this process or one of its children has held, in MiB."""
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return most / (2**20 if sys.platform == "darwin" else 2**10)
