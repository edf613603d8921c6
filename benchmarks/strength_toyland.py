"""How large may a delta be relative to the weight that it changes, before images are noise?

    python benchmarks/strength_toyland.py     writes benchmarks/results/strength_toyland_cpu.json

Three subjects of the embedded base, with adapters of each target set (text keys and values, and all attention), are
generated at rising weights. A row is a weight: the largest ratio of a delta's norm to its layer's weight (`tara
inspect` prints it), and the shares of images in which the judge finds the subject's class and the background. The
checks are of the bound of the warning in `tara.inference.fitting`: images far within it show their subject, images
beyond it do not, and trained adapters, at weight 1, are within it.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import speed_shared as speed
import toyland_cast as study
from result_files import check, command_line

from tara.errors import TaraWarning
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.fitting import LARGEST_RATIO, strengths

STRENGTH = "strength"
SUBJECTS_SEED = 7
"""The subjects that defaults are chosen on."""
WEIGHTS = (0.5, 1, 1.5, 2, 3, 4, 6, 10, 20, 50)
KINDS = ("robot", "duck")
STEPS = 15
TARGETS = ("cross_kv", "attention")
SURE, CHANCE = 0.95, 0.1
"""Minimum share of images with the class well within the bound, and maximum share beyond it."""


def rows(
    weights: Sequence[float] = WEIGHTS, seeds: Sequence[int] = study.SEEDS[:6], **settings: Any
) -> list[dict[str, Any]]:
    """Train, generate and judge; ``settings`` are of the training."""
    world = study.World()
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        members = [member for member in study.cast(SUBJECTS_SEED, Path(folder)) if member.subject.kind in KINDS]
        concepts = [member.concept() for member in members]
        for targets in TARGETS:
            chosen = {**study.SETTINGS, "targets": targets, **settings}
            adapters = study.train(concepts, world.base, lambda part: None, **chosen)
            for index, (member, adapter) in enumerate(zip(members, adapters, strict=True)):
                largest = max(strengths(world.base, adapter.layers).values())
                for weight in weights:
                    active = ActiveAdapter(adapter, weight=float(weight))
                    outcomes = [_judged(world, members, index, active, seed) for seed in seeds]
                    row = {
                        "part": STRENGTH,
                        "case": targets,
                        "subject": f"{member.word} {member.subject.kind}",
                        "weight": weight,
                        "largest_ratio": float(f"{weight * largest:.3g}"),
                        "class_seen": round(sum(there for there, _ in outcomes) / len(seeds), 2),
                        "background_seen": round(sum(there for _, there in outcomes) / len(seeds), 2),
                        "pictures": len(seeds),
                    }
                    print(row, file=sys.stderr, flush=True)
                    measured.append(row)
    return measured


def _judged(
    world: study.World, members: Sequence[study.Member], index: int, active: ActiveAdapter, seed: int
) -> tuple[bool, bool]:
    """Whether the subject's class, and the background, are there in an image of it."""
    place = study.place_of((index,), seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TaraWarning)  # its bound is what is measured here
        images = world.pipeline(study.prompt(members, (index,), place), [active], [seed], steps=STEPS)
    (verdict,) = world.judge(images)
    return any(thing.kind == members[index].subject.kind for thing in verdict.things), verdict.background == place


def checks_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whether the warning's bound lies between trained adapters and noise."""
    beyond = [row["class_seen"] for row in rows if row["largest_ratio"] > LARGEST_RATIO]
    within = [row["class_seen"] for row in rows if row["largest_ratio"] <= LARGEST_RATIO / 2]
    trained = max(row["largest_ratio"] for row in rows if row["weight"] == 1)
    share, noise = sum(within) / len(within), sum(beyond) / len(beyond)
    bound = LARGEST_RATIO
    return [
        check(f"images within {bound / 2:g} times that show the class, share", share, f">= {SURE}", share >= SURE),
        speed.at_most(f"images beyond {bound:g} times that show the class, share", noise, CHANCE),
        speed.at_most("largest ratio of an adapter at weight 1", trained, bound),
    ]


def main() -> None:
    """The command line."""
    args = command_line(__doc__, "strength_toyland_cpu.json").parse_args()
    speed.set_up_process()
    measured = rows()
    speed.write(args.out, measured, checks_of(measured))


if __name__ == "__main__":
    main()
