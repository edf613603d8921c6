"""The demo: trains two subjects from five images each, generates them together in three ways, and scores the images."""

import json
import resource
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tara.adapters.adapter import Adapter
from tara.evaluation.scores import Detections, ImageScore, score
from tara.families.base import Base
from tara.families.loading import load_base
from tara.inference.pipeline import DenoisingStep, Pipeline
from tara.report.grid import Grid, Row, Table
from tara.report.page import PAGE, page
from tara.report.sheet import contact_sheet
from tara.storage.files import atomic_write, writable_folder
from tara.training.loop import StepRecord
from tara.training.run.run import train_recipe
from tara.training.run.steps import TrainingInterrupted
from tara.training.settings import Recipe, concept_settings, train_settings
from toyland import BASE, JUDGE
from toyland.judge import Judge
from toyland.subjects import detections, reference_pictures
from toyland.world import Appearance, Subject

OnProgress = Callable[[str, float], object]
"""Called with what is done now, and the fraction of the whole demo that is done."""

LOCATION = "on the beach"
SEEDS = tuple(range(8))
SHOWN_SEEDS = 5
SAMPLING_STEPS = 25
TRAINING_SHARE = 0.4  # of the demo's time for each of the two trainings; the rest generates


@dataclass(frozen=True, kw_only=True)
class DemoSubject:
    """A subject of the demo and the rare word that stands for it."""

    toy_subject: Subject
    rare_word: str
    photo_seed: int

    @property
    def name(self) -> str:
        """What a prompt calls it."""
        return f"{self.rare_word} {self.toy_subject.kind}"


CAT = Appearance(body=(232, 134, 36), second=(246, 244, 238), third=(40, 84, 200), pattern="stripes", accessory="hat")
ROBOT = Appearance(body=(58, 160, 78), second=(246, 160, 198), third=(238, 214, 66), pattern="spots", accessory="crown")
SUBJECTS = (
    DemoSubject(rare_word="xlo", photo_seed=1, toy_subject=Subject(kind="cat", look=CAT)),
    DemoSubject(rare_word="szn", photo_seed=2, toy_subject=Subject(kind="robot", look=ROBOT)),
)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One way to generate subjects: the training that their adapters come from, and how these are composed."""

    name: str
    heading: str
    subjects: tuple[DemoSubject, ...] = SUBJECTS
    training: str = "tara"
    composer: str = "tara"

    @property
    def prompt(self) -> str:
        return f"{' and '.join(f'a {subject.name}' for subject in self.subjects)} {LOCATION}"


COLUMNS = (
    *(Column(name="alone", heading=f"{subject.name} alone", subjects=(subject,)) for subject in SUBJECTS),
    Column(name="tara", heading="both with TARA"),
    Column(name="tara_sum", heading="both, token masks off", composer="sum"),
    Column(name="plain_sum", heading="plain LoRAs, summed", training="plain", composer="sum"),
)
TRAININGS: Mapping[str, Mapping[str, Any]] = {"tara": {}, "plain": {"token_mask": False, "alignment_loss": "off"}}


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A column's images, one per seed, and their scores."""

    column: Column
    images: Sequence[Image.Image]
    scores: Sequence[ImageScore]


def run(out: Path, on_progress: OnProgress = lambda activity, fraction: None) -> dict[str, Any]:
    """Make photos, train, generate, score, and write ``index.html``, ``sheet.png`` and ``results.json`` into ``out``.

    Returns:
        the content of ``results.json``: seconds, peak memory in MiB, success and identity of each column.

    Raises:
        TaraError: when ``out`` cannot be written.
        KeyboardInterrupt: on Ctrl-C; the demo then starts anew the next time.
    """
    begun = time.perf_counter()
    photos = _write_photos(out)
    base = load_base(BASE, device="cpu")
    adapters = {name: _train(out, base, name, on_progress) for name in TRAININGS}
    trained = time.perf_counter()
    columns = _generate(base, adapters, on_progress)
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    results = {
        "seconds": {"training": round(trained - begun, 1), "total": round(time.perf_counter() - begun, 1)},
        "peak_memory_mib": round(most / (2**20 if sys.platform == "darwin" else 2**10)),
        "columns": {
            name: _metrics([each for column in columns if column.column.name == name for each in column.scores])
            for name in dict.fromkeys(column.name for column in COLUMNS)
        },
    }
    _write(out, photos, columns, results)
    return results


def _write_photos(out: Path) -> list[list[Image.Image]]:
    """The training photos, as a user would have them: a folder of images for each subject."""
    photos = [reference_pictures(subject.toy_subject, subject.photo_seed) for subject in SUBJECTS]
    for subject, images in zip(SUBJECTS, photos, strict=True):
        for index, image in enumerate(images):
            atomic_write(writable_folder(out / "photos" / subject.rare_word) / f"{index:02d}.png", image.save)
    return photos


def _train(out: Path, base: Base, name: str, on_progress: OnProgress) -> dict[str, Adapter]:
    """Both subjects side by side; their adapters by rare word."""

    def on_step(record: StepRecord) -> None:
        done = list(TRAININGS).index(name) + record.index / record.steps
        on_progress(f"training {name}", done * TRAINING_SHARE)

    concepts = tuple(
        concept_settings(
            images=out / "photos" / subject.rare_word,
            rare_word=subject.rare_word,
            class_word=subject.toy_subject.kind,
            out=out / "adapters" / f"{subject.rare_word}-{subject.toy_subject.kind}-{name}.safetensors",
        )
        for subject in SUBJECTS
    )
    settings = train_settings(base=str(BASE), preview_every=0, **TRAININGS[name])
    try:
        adapters = train_recipe(Recipe(settings=settings, concepts=concepts), base, overwrite=True, on_step=on_step)
    except TrainingInterrupted:
        raise KeyboardInterrupt from None  # a resumed training would not go on with the demo
    return {subject.rare_word: adapter for subject, adapter in zip(SUBJECTS, adapters, strict=True)}


def _generate(base: Base, adapters: Mapping[str, Mapping[str, Adapter]], on_progress: OnProgress) -> list[Generated]:
    """Every column's images for the same seeds, with their scores."""
    pipeline, judge, columns = Pipeline(base), Judge.load(JUDGE), list[Generated]()
    for number, column in enumerate(COLUMNS):

        def on_step(step: DenoisingStep, number: int = number) -> None:
            generated = (number + step.fraction) / len(COLUMNS)
            on_progress("generating", 2 * TRAINING_SHARE + generated * (1 - 2 * TRAINING_SHARE))

        images = pipeline(
            column.prompt,
            [adapters[column.training][subject.rare_word] for subject in column.subjects],
            SEEDS,
            steps=SAMPLING_STEPS,
            batch_size=len(SEEDS),
            composer=column.composer,
            on_step=on_step,
        )
        subjects = [subject.toy_subject for subject in column.subjects]
        scores = [score(Detections(**detections(verdict, subjects))) for verdict in judge(images)]
        columns.append(Generated(column=column, images=images, scores=scores))
    return columns


def _metrics(scores: Sequence[ImageScore]) -> dict[str, float]:
    """Share of images that show every subject like itself, and mean similarity of the subjects present (0 if none)."""
    identities = [value for score in scores for value in score.values()["identity"].values()]
    success = np.mean([score.success for score in scores])
    return {"success": round(float(success), 4), "identity": round(float(np.mean(identities or [0])), 4)}


def _write(out: Path, photos: list[list[Image.Image]], columns: Sequence[Generated], results: dict[str, Any]) -> None:
    grid = _grid(photos, columns)
    atomic_write(out / "sheet.png", contact_sheet(grid, side=192).save)
    of_columns: dict[str, dict[str, float]] = results["columns"]
    table = Table(
        headings=("column", "success", "identity"),
        rows=tuple((name, f"{of['success']:.0%}", f"{of['identity']:.2f}") for name, of in of_columns.items()),
        title="Scores",
        note=f"{len(SEEDS)} seeds. Success: every subject of the prompt is there and similar enough to itself. "
        "Identity: similarity of a subject that is there to itself, 0 to 1.",
    )
    html = page(
        title=grid.title,
        lead="Two subjects, each learned from five images, in one image. Every row is one seed.",
        grids=[grid],
        tables=[table],
        command=shlex.join(["tara", "demo", "--out", str(out)]),
    )
    atomic_write(out / PAGE, html.encode())
    atomic_write(out / "results.json", (json.dumps(results, indent=2) + "\n").encode())


def _grid(photos: Sequence[Sequence[Image.Image]], columns: Sequence[Generated]) -> Grid:
    """One row per seed: a photo of each subject, each subject alone, then both in three ways."""
    cells = [
        [*(of[i] if i < len(of) else None for of in photos), *(column.images[i] for column in columns)]
        for i in range(SHOWN_SEEDS)
    ]
    rows = [Row(label=f"seed {seed}", images=tuple(row)) for seed, row in zip(SEEDS, cells, strict=False)]
    headings = [f"{column.column.heading}\nsuccess {_metrics(column.scores)['success']:.0%}" for column in columns]
    photos_of = (f"photos of {subject.name}" for subject in SUBJECTS)
    return Grid(rows=tuple(rows), columns=(*photos_of, *headings), title=columns[-1].column.prompt)
