"""Do two separately trained subjects stand side by side, each with its own looks? TARA against summed plain LoRA.

Eight random subjects (five classes), twelve pairs of them (three of one class), four triples, eight seeds each, on the
embedded base. Every training uses the same photos, steps and rank; the plain LoRA is its best of three learning rates,
chosen on its own success in these very pictures (which favours it). Under "style": each subject in a style that the
base has never seen, learned from five pictures too.

    python benchmarks/quality_toyland.py                       writes benchmarks/results/quality_toyland.json
    python benchmarks/quality_toyland.py --quick --out q.json  fewer seeds and trainings, at most 10 minutes on 2 cores
    python benchmarks/quality_toyland.py --subjects-seed 7 --out s.json  other random subjects
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import toyland_cast as study
from result_files import check, circumstances
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from rich.table import Table
from toyland_cast import Group, Member, Outcome, StyleMember

import toyland
from tara.adapters.adapter import Adapter
from tara.demo import SETTINGS
from tara.evaluation.statistics import format_ci, interval
from tara.families.base import Base
from tara.families.loading import load_base
from tara.inference.pipeline import Pipeline
from tara.training.settings import TrainSettings, train_settings
from toyland.judge import Judge

RESULTS = Path(__file__).parent / "results" / "quality_toyland.json"
SUBJECTS_SEED = 2026
"""The subjects of the table. Defaults were chosen on those of `context_toyland.py`, which are others."""
PLAIN_RATES = (0.5, 1.0, 2.0)
"""Learning rates of the plain LoRA, as multiples of ours."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One way to train all eight adapters; ``changes`` are settings other than the defaults of the demo."""

    changes: dict[str, Any]

    @property
    def plain(self) -> bool:
        return self.changes.get("token_mask") is False

    @property
    def targets(self) -> str:
        return self.changes["targets"]

    @property
    def name(self) -> str:
        rate = f" at {self.changes['learning_rate']:g}" if "learning_rate" in self.changes else ""
        return f"{'plain' if self.plain else 'tara'} {self.targets}{rate}"

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that differs from the package's defaults."""
        return SETTINGS | self.changes


@dataclass(frozen=True, kw_only=True)
class Series:
    """All pictures of one training with one composer."""

    training: Training
    adapters: list[Adapter]
    composer: str
    alone: list[Outcome]
    pairs: list[Outcome]
    triples: list[Outcome]

    def success(self) -> float:
        return interval(study.successes(self.pairs))[0]


def trainings(targets: str, quick: bool) -> list[Training]:
    """TARA, and plain LoRA (no token mask, no alignment loss) of the same targets, steps and rank."""
    rate: float = SETTINGS["learning_rate"]
    plain = {"targets": targets, "token_mask": False, "alignment_loss": "off"}
    rates = (1.0,) if quick else PLAIN_RATES
    return [
        Training(changes={"targets": targets}),
        *(Training(changes={**plain, "learning_rate": factor * rate}) for factor in rates),
    ]


class Study:
    """The base, the judge and the cast; trains and draws one series after another."""

    def __init__(self, subjects_seed: int, folder: Path, quick: bool, progress: Progress) -> None:
        self.backbone: Base = load_base("toyland", device="cpu")
        self.pipeline, self.judge = Pipeline(self.backbone), Judge.load(toyland.JUDGE)
        self.members: list[Member] = study.cast(subjects_seed, folder)
        self.styles: list[StyleMember] = study.style_cast(subjects_seed, folder)
        self.seeds = study.SEEDS[:2] if quick else study.SEEDS
        self.singles: tuple[Group, ...] = tuple((index,) for index in range(len(self.members)))
        self.pairs: tuple[Group, ...] = (*study.SAME_CLASS_PAIRS, *study.OTHER_PAIRS)
        self.progress = progress

    def train_and_draw(self, training: Training, composers: Sequence[str]) -> list[Series]:
        adapters = self.train(self.members, training)
        return [self.series(training, adapters, composer) for composer in composers]

    def train(self, members: Sequence[Member | StyleMember], training: Training) -> list[Adapter]:
        task = self.progress.add_task(f"train {len(members)} x {training.name}", total=1.0)
        return study.train(
            members, self.backbone, lambda part: self.progress.update(task, completed=part), **training.settings
        )

    def series(self, training: Training, adapters: list[Adapter], composer: str) -> Series:
        task = self.progress.add_task(f"draw {training.name}, {composer}", total=3.0)
        found = [
            self.draw(
                groups, adapters, composer, lambda part, done=done: self.progress.update(task, completed=done + part)
            )
            for done, groups in enumerate((self.singles, self.pairs, study.TRIPLES))
        ]
        alone, pairs, triples = found
        return Series(
            training=training, adapters=adapters, composer=composer, alone=alone, pairs=pairs, triples=triples
        )

    def styled(self, series: Series) -> list[dict[str, Any]]:
        """Every subject of a series in every style, one row a style."""
        rows: list[dict[str, Any]] = []
        for style, adapter in zip(self.styles, self.train(self.styles, series.training), strict=True):
            task = self.progress.add_task(f"draw {style.style}, {series.composer}", total=1.0)
            drawn = self.draw(
                self.singles,
                series.adapters,
                series.composer,
                lambda part, task=task: self.progress.update(task, completed=part),
                style=(style, adapter),
            )
            rows.append(style_row(style, series, drawn))
        return rows

    def draw(
        self,
        groups: Sequence[Group],
        adapters: list[Adapter],
        composer: str,
        tell: Callable[[float], object],
        **more: Any,
    ) -> list[Outcome]:
        return study.draw(
            self.pipeline,
            self.judge,
            self.members,
            groups,
            adapters,
            seeds=self.seeds,
            composer=composer,
            tell=tell,
            **more,
        )


def style_row(style: StyleMember, series: Series, drawn: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of a style with every subject of a series, and how like itself a subject looks without it."""
    return {
        "style": style.style,
        "training": "plain" if series.training.plain else "tara",
        "composer": series.composer,
        **study.style_figures(style, drawn),
        "identity_without_style": interval(study.likeness(series.alone)),
    }


def rows_of(series: Series, members: Sequence[Member], default: bool) -> list[dict[str, Any]]:
    """One row per number of subjects and kind of pair, as the result file holds them."""
    training = series.training
    settings = train_settings(**training.settings)
    rows: list[dict[str, Any]] = []
    for subjects, same in ((2, False), (2, True), (3, False)):
        drawn = series.pairs if subjects == 2 else series.triples
        chosen = [one for one in drawn if study.same_class(members, one.group) is same]
        inside = {index for one in chosen for index in one.group}
        alone = [one for one in series.alone if one.group[0] in inside]
        rows.append(
            {
                "training": "plain" if training.plain else "tara",
                "targets": settings.targets,
                "token_mask": settings.token_mask,
                "alignment_loss": settings.alignment_loss,
                "alignment_weight": settings.alignment_weight,
                "learning_rate": settings.peak_learning_rate,
                "composer": series.composer,
                "subjects": subjects,
                "same_class": same,
                "images": len(chosen),
                "default": default,
                "success": interval(study.successes(chosen)),
                "identity": interval(study.likeness(chosen)),
                "identity_alone": interval(study.likeness(alone)),
                "leakage": interval(study.leakage(chosen)),
            }
        )
    return rows


def checks_of(ours: Series, plain: Series, base: Series) -> list[dict[str, Any]]:
    """The bounds that this project sets itself, over all twelve pairs."""
    success = ours.success()
    difference = study.paired_difference(ours.pairs, plain.pairs)
    together = interval(study.likeness(ours.pairs))[0]
    alone = interval(study.likeness(ours.alone))[0]
    bare = base.success()
    grounds = [sum(one.background for one in series.pairs) / len(series.pairs) for series in (ours, base)]
    return [
        check("success of tara, pairs", success, ">= 0.70", success >= 0.70),
        check("success of tara minus plain sum, low end of 95 %", difference[1], "> 0.20", difference[1] > 0.20),
        check("identity alone minus composed", round(alone - together, 4), "<= 0.05", alone - together <= 0.05),
        check("success with class words only", bare, "<= 0.10", bare <= 0.10),
        check(
            "background, base minus tara", round(grounds[1] - grounds[0], 4), "<= 0.05", grounds[1] - grounds[0] <= 0.05
        ),
    ]


def run(subjects_seed: int, quick: bool) -> dict[str, Any]:
    """Everything that the result file holds."""
    begun = time.perf_counter()
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress, tempfile.TemporaryDirectory() as folder:
        subject_study = Study(subjects_seed, Path(folder), quick, progress)
        targets = TrainSettings().targets
        other = "attention" if targets == "cross_kv" else "cross_kv"
        first, *plain_trainings = trainings(targets, quick)
        *ours, base = subject_study.train_and_draw(first, ["tara", "sum", "none"])
        plain = [series for training in plain_trainings for series in subject_study.train_and_draw(training, ["sum"])]
        best_plain = max(plain, key=Series.success)
        extra = [] if quick else subject_study.train_and_draw(Training(changes={"targets": other}), ["tara"])
        style = [] if quick else [*subject_study.styled(ours[0]), *subject_study.styled(best_plain)]
    members = subject_study.members
    rows = rows_of(ours[0], members, True)
    for series in (*ours[1:], *plain, *extra):
        rows += rows_of(series, members, False)
    return {
        "quick": quick,
        "subjects_seed": subjects_seed,
        **circumstances(),
        "seconds": round(time.perf_counter() - begun),
        "threads": torch.get_num_threads(),
        "plain_sum_is_its_best_of": [series.training.name for series in plain],
        "paired_difference": study.paired_difference(ours[0].pairs, best_plain.pairs),
        "checks": checks_of(ours[0], best_plain, base),
        "rows": rows,
        "style": style,
    }


def show(result: dict[str, Any]) -> None:
    console = Console()
    table = Table("training", "targets", "rate", "composer", "subjects", "success", "identity", "alone", "leakage")
    for row in result["rows"]:
        kind = f"{row['subjects']}{' of one class' if row['same_class'] else ''}"
        cells = [format_ci(row[name]) for name in FIGURES]
        style = "bold" if row["default"] else ""
        table.add_row(
            row["training"], row["targets"], f"{row['learning_rate']:g}", row["composer"], kind, *cells, style=style
        )
    console.print(table)
    for row in result["style"]:
        figures = ("style_right", "subject_present", "both", "identity")
        told = ", ".join(f"{name} {format_ci(row[name])}" for name in figures if row[name] is not None)
        console.print(f"{row['style']}, {row['training']}, {row['composer']}: {told}")
    for one in result["checks"]:
        console.print(f"{'holds ' if one['holds'] else 'MISSED'}  {one['name']}: {one['value']} ({one['bound']})")


FIGURES = ("success", "identity", "identity_alone", "leakage")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer seeds and trainings; needs --out")
    parser.add_argument("--subjects-seed", type=int, default=SUBJECTS_SEED, help="other random subjects; needs --out")
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    chosen = parser.parse_args()
    if chosen.out is None and (chosen.quick or chosen.subjects_seed != SUBJECTS_SEED):
        parser.error("--quick and --subjects-seed need --out FILE, so that the committed result stays as it is")
    torch.set_num_threads(chosen.threads)
    result = run(chosen.subjects_seed, chosen.quick)
    out: Path = chosen.out or RESULTS
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result)


if __name__ == "__main__":
    main()
