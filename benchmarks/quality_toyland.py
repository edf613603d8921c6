"""Do two separately trained subjects appear side by side, each as itself? TARA against summed plain LoRA.

Eight random subjects (five classes), twelve pairs of them (three of one class), four triples, eight seeds each, on the
embedded base. Every training uses the same photos, steps and rank; the plain LoRA is its best of three learning rates,
chosen on its own success in these very images (which favours it). Under "style": each subject in a style that is not in
the base's training data, also trained on five images.

    python benchmarks/quality_toyland.py                       writes benchmarks/results/quality_toyland.json
    python benchmarks/quality_toyland.py --quick --out q.json  fewer seeds and trainings, at most 10 minutes on 2 cores
    python benchmarks/quality_toyland.py --subjects-seed 7 --out s.json  other random subjects
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import toyland_cast as study
from result_files import check, command_line, run_info, show_checks, whole_or_elsewhere, write
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from toyland_cast import Group, Member, Outcome, StyleMember

from tara.adapters.adapter import Adapter
from tara.evaluation.statistics import format_ci, interval
from tara.training.settings import train_settings

RESULT = "quality_toyland.json"
SUBJECTS_SEED = 2026
"""The subjects of the table. Defaults were chosen on those of `context_toyland.py`, which are others."""
PLAIN_RATES = (0.5, 1.0, 2.0)
"""Learning rates of the plain LoRA, as multiples of ours."""
FIGURES = ("success", "identity", "identity_alone", "leakage")


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to train all eight adapters; ``changes`` are settings other than the studies'."""

    changes: dict[str, Any]

    @property
    def plain(self) -> bool:
        return self.changes.get("token_mask") is False

    @property
    def name(self) -> str:
        rate = f" at {self.changes['learning_rate']:g}" if "learning_rate" in self.changes else ""
        return f"{'plain' if self.plain else 'tara'} {self.changes['targets']}{rate}"

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that differs from the package's defaults."""
        return study.SETTINGS | self.changes


@dataclass(frozen=True, kw_only=True)
class Series:
    """All images of one training with one composer."""

    way: Way
    adapters: list[Adapter]
    composer: str
    alone: list[Outcome]
    pairs: list[Outcome]
    triples: list[Outcome]

    def success(self) -> float:
        return interval(study.successes(self.pairs))[0]


def ways(targets: str, quick: bool) -> list[Way]:
    """TARA, and plain LoRA (no token mask, no alignment loss) of the same targets, steps and rank."""
    rate: float = study.SETTINGS["learning_rate"]
    plain = {"targets": targets, "token_mask": False, "alignment_loss": "off"}
    rates = (1.0,) if quick else PLAIN_RATES
    return [
        Way(changes={"targets": targets}),
        *(Way(changes={**plain, "learning_rate": factor * rate}) for factor in rates),
    ]


class Study:
    """The base, the judge and the cast; trains and generates one series after another."""

    def __init__(self, subjects_seed: int, folder: Path, quick: bool, bar: Progress) -> None:
        self.world = study.World()
        self.members: list[Member] = study.cast(subjects_seed, folder)
        self.styles: list[StyleMember] = study.style_cast(subjects_seed, folder)
        self.seeds = study.SEEDS[:2] if quick else study.SEEDS
        self.singles: tuple[Group, ...] = tuple((index,) for index in range(len(self.members)))
        self.pairs: tuple[Group, ...] = (*study.SAME_CLASS_PAIRS, *study.OTHER_PAIRS)
        self.bar = bar

    def train_and_generate(self, way: Way, composers: Sequence[str]) -> list[Series]:
        adapters = self.train(self.members, way)
        return [self.series(way, adapters, composer) for composer in composers]

    def train(self, members: Sequence[Member | StyleMember], way: Way) -> list[Adapter]:
        task = self.bar.add_task(f"train {len(members)} x {way.name}", total=1.0)
        concepts = [member.concept() for member in members]
        return study.train(concepts, self.world.base, study.on_task(self.bar, task), **way.settings)

    def series(self, way: Way, adapters: list[Adapter], composer: str) -> Series:
        task = self.bar.add_task(f"generate {way.name}, {composer}", total=3.0)
        alone, pairs, triples = (
            self.generate(groups, adapters, on_progress=study.on_task(self.bar, task, done), composer=composer)
            for done, groups in enumerate((self.singles, self.pairs, study.TRIPLES))
        )
        return Series(way=way, adapters=adapters, composer=composer, alone=alone, pairs=pairs, triples=triples)

    def styled(self, series: Series) -> list[dict[str, Any]]:
        """Every subject of a series in every style, one row a style."""
        rows: list[dict[str, Any]] = []
        for style, adapter in zip(self.styles, self.train(self.styles, series.way), strict=True):
            task = self.bar.add_task(f"generate {style.style}, {series.composer}", total=1.0)
            outcomes = self.generate(
                self.singles,
                series.adapters,
                on_progress=study.on_task(self.bar, task),
                composer=series.composer,
                style=(style, adapter),
            )
            rows.append(style_row(style, series, outcomes))
        return rows

    def generate(self, groups: Sequence[Group], adapters: list[Adapter], **settings: Any) -> list[Outcome]:
        return study.generate(self.world, self.members, groups, adapters, seeds=self.seeds, **settings)


def style_row(style: StyleMember, series: Series, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of a style with every subject of a series, and how like itself a subject looks without it."""
    return {
        "style": style.style,
        "training": "plain" if series.way.plain else "tara",
        "composer": series.composer,
        **study.style_figures(style, outcomes),
        "identity_without_style": interval(study.likeness(series.alone)),
    }


def rows_of(series: Series, members: Sequence[Member], default: bool) -> list[dict[str, Any]]:
    """One row per number of subjects and kind of pair, as the result file holds them."""
    settings = train_settings(**series.way.settings)
    rows: list[dict[str, Any]] = []
    for subjects, same in ((2, False), (2, True), (3, False)):
        outcomes = series.pairs if subjects == 2 else series.triples
        chosen = [one for one in outcomes if study.same_class(members, one.group) is same]
        inside = {index for one in chosen for index in one.group}
        alone = [one for one in series.alone if one.group[0] in inside]
        rows.append(
            {
                "training": "plain" if series.way.plain else "tara",
                **study.method_columns(settings),
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
    backgrounds = [sum(one.background for one in series.pairs) / len(series.pairs) for series in (ours, base)]
    lost = backgrounds[1] - backgrounds[0]
    return [
        check("success of tara, pairs", success, ">= 0.70", success >= 0.70),
        check("success of tara minus plain sum, low end of 95 %", difference[1], "> 0.20", difference[1] > 0.20),
        check("identity alone minus composed", round(alone - together, 4), "<= 0.05", alone - together <= 0.05),
        check("success with class words only", bare, "<= 0.10", bare <= 0.10),
        check("background, base minus tara", round(lost, 4), "<= 0.05", lost <= 0.05),
    ]


def run(subjects_seed: int, quick: bool) -> dict[str, Any]:
    """Everything that the result file holds."""
    begun = time.perf_counter()
    with study.progress() as bar, tempfile.TemporaryDirectory() as folder:
        whole = Study(subjects_seed, Path(folder), quick, bar)
        first, *plain_ways = ways("cross_kv", quick)
        *ours, base = whole.train_and_generate(first, ["tara", "sum", "none"])
        plain = [series for way in plain_ways for series in whole.train_and_generate(way, ["sum"])]
        best_plain = max(plain, key=Series.success)
        extra = [] if quick else whole.train_and_generate(Way(changes={"targets": "attention"}), ["tara"])
        style = [] if quick else [*whole.styled(ours[0]), *whole.styled(best_plain)]
    rows = rows_of(ours[0], whole.members, True)
    for series in (*ours[1:], *plain, *extra):
        rows += rows_of(series, whole.members, False)
    return {
        "quick": quick,
        "subjects_seed": subjects_seed,
        **run_info(),
        "seconds": round(time.perf_counter() - begun),
        "threads": torch.get_num_threads(),
        "plain_sum_is_its_best_of": [series.way.name for series in plain],
        "paired_difference": study.paired_difference(ours[0].pairs, best_plain.pairs),
        "checks": checks_of(ours[0], best_plain, base),
        "rows": rows,
        "style": style,
    }


def show(result: dict[str, Any]) -> None:
    """The rows as a table, then the styles and the checks."""
    console = Console()
    table = Table("training", "targets", "rate", "composer", "subjects", "success", "identity", "alone", "leakage")
    for row in result["rows"]:
        subjects = f"{row['subjects']}{' of one class' if row['same_class'] else ''}"
        rate, cells = f"{row['learning_rate']:g}", [format_ci(row[name]) for name in FIGURES]
        style = "bold" if row["default"] else ""
        table.add_row(row["training"], row["targets"], rate, row["composer"], subjects, *cells, style=style)
    console.print(table)
    for row in result["style"]:
        names = ("style_right", "subject_present", "both", "identity")
        figures = ", ".join(f"{name} {format_ci(row[name])}" for name in names if row[name] is not None)
        console.print(f"{row['style']}, {row['training']}, {row['composer']}: {figures}")
    show_checks(result["checks"])


def main() -> None:
    """The command line."""
    parser = command_line(__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer seeds and trainings; needs --out")
    parser.add_argument("--subjects-seed", type=int, default=SUBJECTS_SEED, help="other random subjects; needs --out")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    whole = not args.quick and args.subjects_seed == SUBJECTS_SEED
    out = whole_or_elsewhere(parser, args.out, RESULT, whole)
    torch.set_num_threads(args.threads)
    result = run(args.subjects_seed, args.quick)
    write(out, result)
    show(result)


if __name__ == "__main__":
    main()
