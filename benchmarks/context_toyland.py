"""How should a rare word meet a prompt that it was not trained in, and which layers should learn?

A rare word's text embedding moves with its position and neighbours, and a key/value delta learned from one fixed
caption is right only there. Two remedies: varied captions in training; at composition the word's embedding from its
training phrase, for the delta alone ("delta") or for the whole row ("bank"). Both are measured for adapters on text
keys and values, and beside them adapters on all attention projections. Defaults were chosen here, on other subjects
than those of `quality_toyland.py`.

    python benchmarks/context_toyland.py          writes benchmarks/results/context_toyland_cpu.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import toyland_cast as study
from result_files import circumstances
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import toyland
from tara.adapters.adapter import Adapter, Context
from tara.demo import SETTINGS
from tara.evaluation.statistics import format_ci, interval
from tara.families.loading import load_base
from tara.inference.pipeline import Pipeline
from toyland.judge import Judge

RESULTS = Path(__file__).parent / "results" / "context_toyland_cpu.json"
SUBJECTS_SEED = 7
TRAININGS = (("cross_kv", "fixed"), ("cross_kv", "varied"), ("attention", "fixed"))
"""Targets and captions of each training."""
SEEDS = 3
CONTEXTS: tuple[Context, ...] = ("prompt", "delta", "bank")
PAIRS = (*study.SAME_CLASS_PAIRS, *study.OTHER_PAIRS)


class Comparison:
    """The base, the judge and the cast; one row of figures after another."""

    def __init__(self, subjects_seed: int, folder: Path, seeds: int, progress: Progress) -> None:
        self.base = load_base("toyland", device="cpu")
        self.pipeline, self.judge = Pipeline(self.base), Judge.load(toyland.JUDGE)
        self.members = study.cast(subjects_seed, folder)
        self.seeds, self.progress = study.SEEDS[:seeds], progress

    def train(self, **settings: Any) -> list[Adapter]:
        """The cast's adapters with settings other than the demo's."""
        task = self.progress.add_task(f"train {settings['targets']}, {settings['captions']} captions", total=1.0)

        def tell(part: float) -> None:
            self.progress.update(task, completed=part)

        return study.train(self.members, self.base, tell, **(SETTINGS | settings))

    def figures(self, adapters: list[Adapter], context: Context) -> dict[str, Any]:
        """Every subject alone and every pair, drawn and judged."""
        task = self.progress.add_task(f"draw with context {context}", total=2.0)
        singles = tuple((index,) for index in range(len(self.members)))
        drawn: list[list[study.Outcome]] = []
        for done, groups in enumerate((singles, PAIRS)):

            def tell(part: float, done: int = done) -> None:
                self.progress.update(task, completed=done + part)

            drawn.append(
                study.draw(
                    self.pipeline,
                    self.judge,
                    self.members,
                    groups,
                    adapters,
                    seeds=self.seeds,
                    tell=tell,
                    context=context,
                )
            )
        alone, pairs = drawn
        return {
            "images": len(pairs),
            "success": interval(study.successes(pairs)),
            "identity": interval(study.likeness(pairs)),
            "success_alone": interval(study.successes(alone)),
            "identity_alone": interval(study.likeness(alone)),
            "leakage": interval(study.leakage(pairs)),
        }


def run(subjects_seed: int, seeds: int) -> dict[str, Any]:
    """Success, identity and leakage for each way to train and each way to compose."""
    begun = time.perf_counter()
    rows: list[dict[str, Any]] = []
    with Progress(console=Console(stderr=True)) as progress, tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(subjects_seed, Path(folder), seeds, progress)
        for targets, captions in TRAININGS:
            adapters = comparison.train(captions=captions, targets=targets)
            for context in CONTEXTS:
                figures = comparison.figures(adapters, context)
                rows.append({"captions": captions, "context": context, "targets": targets, **figures})
    return {
        "subjects_seed": subjects_seed,
        **circumstances(),
        "seconds": round(time.perf_counter() - begun),
        "threads": torch.get_num_threads(),
        "rows": rows,
        "checks": [],  # it chooses a default, and no bound is named for it
    }


def show(result: dict[str, Any]) -> None:
    """The rows as a table."""
    names = ("success", "identity", "success_alone", "identity_alone", "leakage")
    table = Table("targets", "captions", "context", *names)
    for row in result["rows"]:
        table.add_row(row["targets"], row["captions"], row["context"], *(format_ci(row[name]) for name in names))
    Console().print(table)


def main() -> None:
    """Parse, run, write, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects-seed", type=int, default=SUBJECTS_SEED, help="which random subjects")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds of each pair")
    parser.add_argument("--out", type=Path, default=RESULTS, help="result file")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    result = run(chosen.subjects_seed, chosen.seeds)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result)


if __name__ == "__main__":
    main()
