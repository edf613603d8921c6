"""What does it cost to train: a step beside its floor and beside the usual script, and many concepts beside one.

    python benchmarks/training_speed.py                  writes benchmarks/results/training_speed_cpu.json
    python benchmarks/training_speed.py --base toyland   measures one base, and keeps the others' rows

`step`: SD 1.5 and SDXL at full size, with random weights in bfloat16, 256 pixels, one photo a step:

- `floor`: the frozen base's forward pass, and the gradient of its loss with respect to the text's keys and values:
  no way to learn those can do with less;
- `tara cross_kv`, `tara attention`: a whole step of ours, with alignment loss, clipping and AdamW;
- `usual script`: autoencoder and text encoder at every step, PEFT's LoRA on q, k, v and out of every attention.

`concepts`: a step of M concepts in one run on the embedded base; `seconds` are per concept, the ratio is to a run of
one. `runs`: whole runs of 100 steps, M concepts in one process and each in a process of its own, one after the other,
from the start of Python to the adapters; `seconds` of the CPU per concept, the ratio is to separate runs,
`peak_memory_mib` the largest process's. How cases take turns: speed_shared.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import baselines
import full_size
import speed_shared as speed
import torch
import toyland_cast as study
from speed_shared import Shape

from tara.families.base import Base
from tara.families.loading import load_base
from tara.families.processors import TextConditioning
from tara.training.loop import Training
from tara.training.run.run import train_recipe
from tara.training.settings import ConceptSettings, Recipe, Targets, concept_settings, train_settings
from toyland.subjects import draw_subjects, reference_pictures

STEP, CONCEPTS, RUNS = "step", "concepts", "runs"
FLOOR = "floor"
MANY = (1, 2, 4, 8, 16)
PHOTOS = 2
MORE_STEPS_THAN_TIMED = 10_000
RUN_STEPS = 100


def concepts_in(folder: Path, count: int) -> list[ConceptSettings]:
    """Concepts with two photos each."""
    kinds = [study.KINDS[number % len(study.KINDS)] for number in range(count)]
    found: list[ConceptSettings] = []
    for number, subject in enumerate(draw_subjects(0, kinds)):
        word = f"x{'bcdfghjklmnpqrst'[number]}o"
        photos = folder / word
        photos.mkdir(exist_ok=True)
        for picture, image in enumerate(reference_pictures(subject, number)[:PHOTOS]):
            image.save(photos / f"{picture}.png")
        found.append(concept_settings(images=photos, word=word, kind=subject.kind))
    return found


def stepping(
    backbone: Base, concepts: Sequence[ConceptSettings], pixels: int, targets: Targets = "cross_kv"
) -> Callable[[], Any]:
    """A training that is under way; each call is one whole step."""
    backbone.onload()  # on a GPU an earlier training lets parts of the base rest
    settings = train_settings(targets=targets, steps=MORE_STEPS_THAN_TIMED, resolution=pixels, flip=False)
    steps = Training(concepts, settings, backbone).steps()
    next(steps)  # which also encodes the caption and makes the optimiser's averages
    return lambda: next(steps)


class Steps:
    """One family's base and the ways to take a step on it."""

    def __init__(self, shape: Shape, folder: Path) -> None:
        self.pipe, self.pixels = speed.build_pipeline(shape), shape.pixels
        self.plain = baselines.twin(self.pipe)
        self.concepts = concepts_in(folder, 1)

    def rows(self, rounds: int) -> list[dict[str, Any]]:
        """All rows of the family."""
        backbone = Base(self.pipe)
        floor = self.floor(backbone)
        cases = [
            speed.case(FLOOR, floor),
            speed.case(f"{FLOOR}{speed.AGAIN}", floor),
            speed.case("tara cross_kv", stepping(backbone, self.concepts, self.pixels)),
            speed.case("tara attention", stepping(backbone, self.concepts, self.pixels, "attention")),
            speed.case("usual script", self.usual()),
        ]
        return speed.timed_rows(STEP, cases, rounds)

    def floor(self, backbone: Base) -> Callable[[], Any]:
        """Forward, and the gradient of the loss with respect to keys and values."""
        side = self.pixels // backbone.vae_scale
        latents = torch.randn(1, backbone.latent_channels, side, side, dtype=backbone.dtype)
        encoding, timesteps = backbone.encode([self.concepts[0].phrase]), torch.tensor([500])
        kv = {
            layer: (keys.detach().requires_grad_(), values.detach().requires_grad_())
            for layer, (keys, values) in backbone.kv(encoding.embeddings).items()
        }
        leaves = [part for pair in kv.values() for part in pair]
        backbone.install()

        def step() -> Any:
            predicted = backbone.predict(latents, timesteps, encoding, TextConditioning(kv))
            return torch.autograd.grad((predicted.float() - latents.float()).square().mean(), leaves)

        return step

    def usual(self) -> Callable[[], Any]:
        """The usual script's step, on modules of its own."""
        (first, *_) = sorted(self.concepts[0].images.iterdir())
        return baselines.usual_step(self.plain, first, self.concepts[0].phrase, self.pixels, speed.RANK)


def measure(family: str, shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """The rows of one family; runs in a process of its own, whose memory is given back."""
    speed.be_alone()
    with tempfile.TemporaryDirectory() as folder:
        return [{"family": family, **row} for row in Steps(shape, Path(folder)).rows(rounds)]


def many_concepts(rounds: int, many: Sequence[int] = MANY) -> list[dict[str, Any]]:
    """Runs of one and of many concepts on the embedded base, which take turns."""
    speed.be_alone()
    backbone = load_base("toyland", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        concepts = concepts_in(Path(folder), max(many))
        cases = [
            speed.case(f"{count} in one run", stepping(backbone, concepts[:count], backbone.resolution), concepts=count)
            for count in many
        ]
        rows = speed.timed_rows(CONCEPTS, cases, rounds)
    return [{"family": "toyland", **_per_concept(row)} for row in rows]


def _per_concept(row: Mapping[str, Any]) -> dict[str, Any]:
    shares = {name: [float(f"{value / row['concepts']:.4g}") for value in row[name]] for name in ("seconds", "ratio")}
    return {**row, **shares}


def whole_run(concepts: Sequence[ConceptSettings], steps: int) -> tuple[float, int]:
    """Train in this process, which was started for it: its CPU seconds, and its maximum resident memory in MiB."""
    speed.be_alone()
    train_recipe(Recipe(settings=train_settings(device="cpu", threads=1, steps=steps), concepts=tuple(concepts)))
    return time.process_time(), full_size.peak_memory() >> 20


def whole_runs(rounds: int, many: Sequence[int] = MANY, steps: int = RUN_STEPS) -> list[dict[str, Any]]:
    """M concepts in one run, and in as many as there are concepts: of the same runs of one, the first M."""
    groups = [[number] for number in range(max(many))] + [list(range(count)) for count in many]
    done: list[list[tuple[float, int]]] = []
    with tempfile.TemporaryDirectory() as place:
        concepts = concepts_in(Path(place), max(many))
        for number in range(rounds):
            found: dict[int, tuple[float, int]] = {}
            for index in sorted(range(len(groups)), reverse=bool(number % 2)):
                with tempfile.TemporaryDirectory() as out:
                    placed = [_placed(concepts[one], Path(out)) for one in groups[index]]
                    found[index] = speed.alone(whole_run, placed, steps)
            done.append([found[index] for index in range(len(groups))])
            print(f"runs, round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    rows: list[dict[str, Any]] = []
    for group, count in enumerate(many, max(many)):
        separate = [sum(seconds for seconds, _ in one[:count]) for one in done]
        together = [one[group][0] for one in done]
        peaks = max(peak for one in done for _, peak in one[:count]), max(one[group][1] for one in done)
        for case, seconds, peak in zip(("separate runs", "one run"), (separate, together), peaks, strict=True):
            rows.append(
                {
                    "family": "toyland",
                    "part": RUNS,
                    "case": case,
                    "concepts": count,
                    "steps": steps,
                    "seconds": speed.spread([one / count for one in seconds]),
                    "ratio": speed.spread([one / other for one, other in zip(seconds, separate, strict=True)]),
                    "peak_memory_mib": peak,
                    "rounds": rounds,
                }
            )
    return rows


def _placed(concept: ConceptSettings, folder: Path) -> ConceptSettings:
    return concept.model_copy(update={"out": folder / f"{concept.word}.safetensors"})


def checks_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the issue promises."""
    found = [
        speed.at_most(f"{row['family']}, cross_kv, step over the floor", row["ratio"][0], 1.05)
        for row in speed.rows_where(rows, part=STEP, case="tara cross_kv")
    ]
    found += [
        speed.at_most(f"toyland, {row['concepts']} concepts in one run, time of each over alone", row["ratio"][0], 1)
        for row in speed.rows_where(rows, part=CONCEPTS)
        if row["concepts"] > 1
    ]
    found += [
        speed.at_most(f"toyland, {row['concepts']} concepts, a whole run over separate ones", row["ratio"][0], 1)
        for row in speed.rows_where(rows, part=RUNS, case="one run")
        if row["concepts"] > 1
    ]
    return found


RUN_ROUNDS = 2
ROUNDS = {"sd15": 5, "sdxl": 4, "toyland": 3}


def rows_of(base: str) -> list[dict[str, Any]]:
    """The rows of a full-size family or of the embedded base."""
    if base != "toyland":
        return speed.alone(measure, base, speed.SHAPES[base], ROUNDS[base])
    rows: list[dict[str, Any]] = speed.alone(many_concepts, ROUNDS[base])
    return [*rows, *whole_runs(RUN_ROUNDS)]


def main() -> None:
    """Parse, run, write, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=ROUNDS, help="only this one")
    parser.add_argument("--out", type=Path, default=speed.RESULTS / "training_speed_cpu.json", help="result file")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for base in [chosen.base] if chosen.base else list(ROUNDS):
        rows = speed.merged(chosen.out, rows_of(base))
        checks = checks_of(rows)
        speed.write(chosen.out, rows, checks)


if __name__ == "__main__":
    main()
