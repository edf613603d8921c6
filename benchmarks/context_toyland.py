"""Which embedding of a rare word should its delta read in a new prompt, and which layers should be trained?

A rare word's text embedding changes with its position and neighbours, and a key/value delta that was trained on one
fixed caption is right only there. Two remedies: varied captions in training; at composition the word's embedding from
its instance prompt ("delta") instead of the prompt's ("prompt"). Both are measured for adapters on text keys and
values, and beside them adapters on all attention projections. Defaults were chosen here, on other subjects than those
of `quality_toyland.py`.

    python benchmarks/context_toyland.py          writes benchmarks/results/context_toyland_cpu.json

The committed results also have rows of a third context, "bank": the whole row from the instance prompt. It was removed
after them, because no pair succeeded with it.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import toyland_cast as study
from result_files import command_line, run_info, write
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tara.adapters.adapter import Adapter
from tara.adapters.card import Context
from tara.evaluation.statistics import format_ci, interval

SUBJECTS_SEED = 7
TRAININGS = (("cross_kv", "fixed"), ("cross_kv", "varied"), ("attention", "fixed"))
"""Targets and captions of each training."""
SEEDS = 3
CONTEXTS: tuple[Context, ...] = ("prompt", "delta")
PAIRS = (*study.SAME_CLASS_PAIRS, *study.OTHER_PAIRS)
FIGURES = ("success", "identity", "success_alone", "identity_alone", "leakage")


class Comparison:
    """The base, the judge and the cast; one row of figures after another."""

    def __init__(self, subjects_seed: int, folder: Path, seeds: int, bar: Progress) -> None:
        self.world, self.members = study.World(), study.cast(subjects_seed, folder)
        self.seeds, self.bar = study.SEEDS[:seeds], bar

    def train(self, **settings: Any) -> list[Adapter]:
        """The cast's adapters with some settings other than the studies'."""
        task = self.bar.add_task(f"train {settings['targets']}, {settings['captions']} captions", total=1.0)
        concepts = [member.concept() for member in self.members]
        return study.train(concepts, self.world.base, study.on_task(self.bar, task), **(study.SETTINGS | settings))

    def figures(self, adapters: list[Adapter], context: Context) -> dict[str, Any]:
        """Every subject alone and every pair, generated and judged."""
        task = self.bar.add_task(f"generate with context {context}", total=2.0)
        singles = tuple((index,) for index in range(len(self.members)))
        alone, pairs = (
            study.generate(
                self.world,
                self.members,
                groups,
                adapters,
                seeds=self.seeds,
                on_progress=study.on_task(self.bar, task, done),
                context=context,
            )
            for done, groups in enumerate((singles, PAIRS))
        )
        return {
            "images": len(pairs),
            "success": interval(study.successes(pairs)),
            "identity": interval(study.likeness(pairs)),
            "success_alone": interval(study.successes(alone)),
            "identity_alone": interval(study.likeness(alone)),
            "leakage": interval(study.leakage(pairs)),
        }


def run(subjects_seed: int, seeds: int, **settings: Any) -> dict[str, Any]:
    """Success, identity and leakage of each training with each context."""
    begun = time.perf_counter()
    rows: list[dict[str, Any]] = []
    with study.progress() as bar, tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(subjects_seed, Path(folder), seeds, bar)
        for targets, captions in TRAININGS:
            adapters = comparison.train(captions=captions, targets=targets, **settings)
            for context in CONTEXTS:
                figures = comparison.figures(adapters, context)
                rows.append({"captions": captions, "context": context, "targets": targets, **figures})
    return {
        "subjects_seed": subjects_seed,
        **run_info(),
        "seconds": round(time.perf_counter() - begun),
        "threads": torch.get_num_threads(),
        "rows": rows,
        "checks": [],  # it chooses a default, and has no bounds
    }


def show(result: dict[str, Any]) -> None:
    """The rows as a table."""
    table = Table("targets", "captions", "context", *FIGURES)
    for row in result["rows"]:
        table.add_row(row["targets"], row["captions"], row["context"], *(format_ci(row[name]) for name in FIGURES))
    Console().print(table)


def main() -> None:
    """The command line."""
    parser = command_line(__doc__, "context_toyland_cpu.json")
    parser.add_argument("--subjects-seed", type=int, default=SUBJECTS_SEED, help="which random subjects")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds of each pair")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = run(args.subjects_seed, args.seeds)
    write(args.out, result)
    show(result)


if __name__ == "__main__":
    main()
