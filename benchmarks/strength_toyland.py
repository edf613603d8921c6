"""How large may a delta be beside the weight that it changes, before pictures are noise?

    python benchmarks/strength_toyland.py     writes benchmarks/results/strength_toyland_cpu.json

Three subjects of the embedded base, learned by adapters of each kind as the demo learns (text keys and values, and all
attention), are drawn at rising weights. A row is a weight: the largest ratio of a delta's norm to its layer's weight
(`tara inspect` prints it), and the shares of pictures in which the judge sees the subject's class and the background.
The bound that the warning of `tara.inference.strength` has is checked: pictures far within it show their subject, pictures beyond
it do not, and adapters as they come from training, at weight 1, are within it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import speed_shared as speed
import toyland_cast as study
from result_files import check

import toyland
from tara.demo import SETTINGS
from tara.errors import TaraWarning
from tara.families.loading import load_base
from tara.inference.binding import ActiveAdapter
from tara.inference.pipeline import Pipeline
from tara.inference.strength import MOST, strengths
from toyland.judge import Judge

STRENGTH = "strength"
SUBJECTS_SEED = 7
"""The subjects that defaults are chosen on."""
WEIGHTS = (0.5, 1, 1.5, 2, 3, 4, 6, 10, 20, 50)
KINDS = ("robot", "duck")
STEPS = 15
TARGETS = ("cross_kv", "attention")
SURE, CHANCE = 0.95, 0.1
"""Shares of pictures in which the judge sees the class where all is well, and where little is left."""


def rows(
    weights: Sequence[float] = WEIGHTS, seeds: Sequence[int] = study.SEEDS[:6], **settings: Any
) -> list[dict[str, Any]]:
    """Train, draw and judge."""
    base = load_base("toyland", device="cpu")
    pipeline, judge = Pipeline(base), Judge.load(toyland.JUDGE)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        members = [member for member in study.cast(SUBJECTS_SEED, Path(folder)) if member.subject.kind in KINDS]
        for targets in TARGETS:
            chosen = {**SETTINGS, "targets": targets, **settings}
            adapters = study.train(members, base, lambda _: None, **chosen)
            for index, (member, adapter) in enumerate(zip(members, adapters, strict=True)):
                largest = max(strengths(base, adapter.layers).values())
                for weight in weights:
                    active = ActiveAdapter(adapter, weight=float(weight))
                    outcomes = [_drawn(pipeline, judge, members, index, active, seed) for seed in seeds]
                    row = {
                        "part": STRENGTH,
                        "case": targets,
                        "subject": f"{member.word} {member.subject.kind}",
                        "weight": weight,
                        "largest_ratio": float(f"{weight * largest:.3g}"),
                        "class_seen": round(sum(seen for seen, _ in outcomes) / len(seeds), 2),
                        "background_seen": round(sum(there for _, there in outcomes) / len(seeds), 2),
                        "pictures": len(seeds),
                    }
                    print(row, file=sys.stderr, flush=True)
                    found.append(row)
    return found


def _drawn(
    pipeline: Pipeline, judge: Judge, members: Sequence[study.Member], index: int, active: ActiveAdapter, seed: int
) -> tuple[bool, bool]:
    """Whether the subject's class, and the background, are seen in a picture of it."""
    place = study.place_of((index,), seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TaraWarning)  # that is what is measured here
        images = pipeline(study.prompt(members, (index,), place), [active], [seed], steps=STEPS)
    (verdict,) = judge(images)
    return any(thing.kind == members[index].subject.kind for thing in verdict.things), verdict.background == place


def checks_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whether the warning's bound lies between adapters as they are trained and noise."""
    beyond = [row["class_seen"] for row in rows if row["largest_ratio"] > MOST]
    within = [row["class_seen"] for row in rows if row["largest_ratio"] <= MOST / 2]
    trained = max(row["largest_ratio"] for row in rows if row["weight"] == 1)
    seen = sum(within) / len(within)
    return [
        check(f"pictures within {MOST / 2:g} times that show the class, share", seen, f">= {SURE}", seen >= SURE),
        speed.at_most(f"pictures beyond {MOST:g} times that show the class, share", sum(beyond) / len(beyond), CHANCE),
        speed.at_most("largest ratio of an adapter at weight 1", trained, MOST),
    ]


def main() -> None:
    """Parse, run, write, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=speed.RESULTS / "strength_toyland_cpu.json", help="result file")
    chosen = parser.parse_args()
    speed.be_alone()
    found = rows()
    speed.write(chosen.out, found, checks_of(found))


if __name__ == "__main__":
    main()
