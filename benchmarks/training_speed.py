"""What does training cost? A step relative to its floor and to the usual script, and many concepts relative to one.

    python benchmarks/training_speed.py                  writes benchmarks/results/training_speed_cpu.json
    python benchmarks/training_speed.py --base toyland   measures one base, and keeps the others' rows

`step`: SD 1.5 and SDXL at full size, with random weights in bfloat16, 256 pixels, one photo a step:

- `floor`: the frozen base's forward pass, and the gradient of its loss with respect to the text's keys and values:
  no training of those can take less;
- `tara cross_kv`, `tara attention`: a whole step of ours, with alignment loss, clipping and AdamW;
- `usual script`: autoencoder and text encoder at every step, PEFT's LoRA on q, k, v and out of every attention.

`concepts`: a step of M concepts in one run on the embedded base; `seconds` are per concept, the ratio is to a run of
one. `runs`: whole runs of 100 steps, M concepts in one process and each in a process of its own, one after the other,
from the start of Python to the adapters; `seconds` are CPU time per concept, the ratio is to separate runs,
`peak_memory_mib` is the largest process's. How cases are interleaved: speed_shared.py.
"""

from __future__ import annotations

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
from result_files import command_line
from speed_shared import Shape

import toyland
from tara.families.base import Base
from tara.families.loading import load_base
from tara.families.processors import TextConditioning
from tara.training.concept_settings import ConceptSettings
from tara.training.inputs import check_inputs
from tara.training.loop import Training
from tara.training.run.run import train_recipe
from tara.training.settings import Recipe, Targets, concept_settings, train_settings
from toyland.subjects import draw_subjects, reference_pictures

STEP, CONCEPTS, RUNS = "step", "concepts", "runs"
FLOOR = "floor"
MANY = (1, 2, 4, 8, 16)
PHOTOS = 2
MORE_STEPS_THAN_TIMED = 10_000
RUN_STEPS = 100


def concepts_in(folder: Path, count: int) -> list[ConceptSettings]:
    """Concepts with two photos each."""
    class_words = [study.KINDS[number % len(study.KINDS)] for number in range(count)]
    concepts: list[ConceptSettings] = []
    for number, subject in enumerate(draw_subjects(0, class_words)):
        word = f"x{'bcdfghjklmnpqrst'[number]}o"
        photos = folder / word
        photos.mkdir(exist_ok=True)
        for index, image in enumerate(reference_pictures(subject, number)[:PHOTOS]):
            image.save(photos / f"{index}.png")
        concepts.append(concept_settings(images=photos, rare_word=word, class_word=subject.kind))
    return concepts


def stepping(
    base: Base, concepts: Sequence[ConceptSettings], pixels: int, targets: Targets = "cross_kv"
) -> Callable[[], Any]:
    """A training in progress; each call is one whole step."""
    base.onload()  # on a GPU an earlier training has offloaded parts of the base
    settings = train_settings(
        base=base.family.name,
        targets=targets,
        rank=speed.RANK,
        steps=MORE_STEPS_THAN_TIMED,
        batch_size=1,
        resolution=pixels,
        flip=False,
    )
    steps = Training(check_inputs(concepts, settings, base)).steps()
    next(steps)  # which also encodes the caption and allocates the optimizer's averages
    return lambda: next(steps)


class Steps:
    """One family's base and the ways to take a step on it."""

    def __init__(self, shape: Shape, folder: Path) -> None:
        self.pipe, self.pixels = speed.build_pipeline(shape), shape.pixels
        self.plain = baselines.twin(self.pipe)
        self.concepts = concepts_in(folder, 1)

    def rows(self, rounds: int) -> list[dict[str, Any]]:
        """All rows of the family."""
        base = Base(self.pipe)
        floor = self.floor(base)
        cases = [
            speed.case(FLOOR, floor),
            speed.case(f"{FLOOR}{speed.AGAIN}", floor),
            speed.case("tara cross_kv", stepping(base, self.concepts, self.pixels)),
            speed.case("tara attention", stepping(base, self.concepts, self.pixels, "attention")),
            speed.case("usual script", self.usual()),
        ]
        return speed.timed_rows(STEP, cases, rounds)

    def floor(self, base: Base) -> Callable[[], Any]:
        """Forward, and the gradient of the loss with respect to keys and values."""
        side, channels = self.pixels // base.vae_scale, self.pipe.vae.config.latent_channels
        latents = torch.randn(1, channels, side, side, dtype=base.dtype)
        encoding, timesteps = base.encode([self.concepts[0].phrase]), torch.tensor([500])
        kv = {
            layer: (keys.detach().requires_grad_(), values.detach().requires_grad_())
            for layer, (keys, values) in base.project_text(encoding.embeddings).items()
        }
        leaves = [part for pair in kv.values() for part in pair]
        base.processors.install()

        def step() -> Any:
            predicted = base.predict(latents, timesteps, encoding, TextConditioning(kv))
            return torch.autograd.grad((predicted.float() - latents.float()).square().mean(), leaves)

        return step

    def usual(self) -> Callable[[], Any]:
        """The usual script's step, on modules of its own."""
        (first, *_) = sorted(self.concepts[0].images.iterdir())
        return baselines.usual_step(self.plain, first, self.concepts[0].phrase, self.pixels, speed.RANK)


def measure(family: str, shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """The rows of one family; runs in a process of its own, whose memory is given back."""
    speed.set_up_process()
    with tempfile.TemporaryDirectory() as folder:
        return [{"family": family, **row} for row in Steps(shape, Path(folder)).rows(rounds)]


def many_concepts(rounds: int, many: Sequence[int] = MANY) -> list[dict[str, Any]]:
    """Runs of one and of many concepts on the embedded base, interleaved."""
    speed.set_up_process()
    base = load_base(toyland.BASE, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        concepts = concepts_in(Path(folder), max(many))
        cases = [
            speed.case(f"{count} in one run", stepping(base, concepts[:count], base.resolution), concepts=count)
            for count in many
        ]
        rows = speed.timed_rows(CONCEPTS, cases, rounds)
    return [{"family": "toyland", **_per_concept(row)} for row in rows]


def _per_concept(row: Mapping[str, Any]) -> dict[str, Any]:
    shares = {name: [float(f"{value / row['concepts']:.4g}") for value in row[name]] for name in ("seconds", "ratio")}
    return {**row, **shares}


def whole_run(concepts: Sequence[ConceptSettings], steps: int) -> tuple[float, int]:
    """Train in this process, which was started for it; its CPU seconds, and its maximum resident memory in MiB."""
    speed.set_up_process()
    settings = train_settings(
        base=str(toyland.BASE),
        device="cpu",
        threads=1,
        steps=steps,
        rank=speed.RANK,
        batch_size=1,
        preview_every=0,
    )
    train_recipe(Recipe(settings=settings, concepts=tuple(concepts)))
    return time.process_time(), full_size.peak_memory() >> 20


def whole_runs(rounds: int, many: Sequence[int] = MANY, steps: int = RUN_STEPS) -> list[dict[str, Any]]:
    """M concepts in one run, and in M runs of one concept each, which are measured once for all M."""
    groups = [[number] for number in range(max(many))] + [list(range(count)) for count in many]
    done: list[list[tuple[float, int]]] = []
    with tempfile.TemporaryDirectory() as place:
        concepts = concepts_in(Path(place), max(many))
        for number in range(rounds):
            measured: dict[int, tuple[float, int]] = {}
            for index in sorted(range(len(groups)), reverse=bool(number % 2)):
                with tempfile.TemporaryDirectory() as out:
                    placed = [_placed(concepts[one], Path(out)) for one in groups[index]]
                    measured[index] = speed.alone(whole_run, placed, steps)
            done.append([measured[index] for index in range(len(groups))])
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
    return concept.model_copy(update={"out": folder / f"{concept.rare_word}.safetensors"})


def checks_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bounds of all rows."""
    checks = [
        speed.at_most(f"{row['family']}, cross_kv, step over the floor", row["ratio"][0], 1.05)
        for row in speed.rows_where(rows, part=STEP, case="tara cross_kv")
    ]
    checks += [
        speed.at_most(f"toyland, {row['concepts']} concepts in one run, time of each over alone", row["ratio"][0], 1)
        for row in speed.rows_where(rows, part=CONCEPTS)
        if row["concepts"] > 1
    ]
    checks += [
        speed.at_most(f"toyland, {row['concepts']} concepts, a whole run over separate ones", row["ratio"][0], 1)
        for row in speed.rows_where(rows, part=RUNS, case="one run")
        if row["concepts"] > 1
    ]
    return checks


RUN_ROUNDS = 2
ROUNDS = {"sd15": 5, "sdxl": 4, "toyland": 3}


def rows_of(base: str) -> list[dict[str, Any]]:
    """The rows of a full-size family or of the embedded base."""
    if base != "toyland":
        return speed.alone(measure, base, speed.SHAPES[base], ROUNDS[base])
    rows: list[dict[str, Any]] = speed.alone(many_concepts, ROUNDS[base])
    return [*rows, *whole_runs(RUN_ROUNDS)]


def main() -> None:
    """The command line."""
    parser = command_line(__doc__, "training_speed_cpu.json")
    parser.add_argument("--base", choices=ROUNDS, help="only this one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for base in [args.base] if args.base else list(ROUNDS):
        rows = speed.merged(args.out, rows_of(base))
        speed.write(args.out, rows, checks_of(rows))


if __name__ == "__main__":
    main()
