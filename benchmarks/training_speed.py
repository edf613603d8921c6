"""What does it cost to train: a step beside its floor and beside the usual script, and many concepts beside one.

    python benchmarks/training_speed.py                  writes benchmarks/results/training_speed_cpu.json
    python benchmarks/training_speed.py --base toyland   measures one base, and keeps the others' rows

`step`: SD 1.5 and SDXL at full size, with random weights in bfloat16, 256 pixels, one photo a step:

- `floor`: the frozen base's forward pass, and the gradient of its loss with respect to the text's keys and values:
  no way to learn those can do with less;
- `tara cross_kv`, `tara attention`: a whole step of ours, with alignment loss, clipping and AdamW;
- `usual script`: autoencoder and text encoder at every step, PEFT's LoRA on q, k, v and out of every attention.

`concepts`: M concepts in one run on the embedded base; `seconds` are per concept, the ratio is to a run of one, and
`peak_memory_mib` is a whole process's. How cases take turns: speed_shared.py.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import baselines
import full_size
import speed_shared as speed
import torch
import toyland_cast as study
from speed_shared import Shape

from tara.attention import TextConditioning
from tara.backbone import Backbone
from tara.bases import load_base
from tara.config import ConceptSettings, Targets, concept_settings, train_settings
from tara.training import Training
from toyland.subjects import draw_subjects, reference_pictures

STEP, CONCEPTS = "step", "concepts"
FLOOR = "floor"
MANY = (1, 2, 4, 8, 16)
PHOTOS = 2
MORE_STEPS_THAN_TIMED = 10_000
NEEDS_GPU = (
    "SDXL at 1024 pixels and SD 1.5 at 512, peak memory",
    "images per second and model FLOP utilisation",
    "concepts per hour, with and without compile",
)


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
    backbone: Backbone, concepts: Sequence[ConceptSettings], pixels: int, targets: Targets = "cross_kv"
) -> Callable[[], Any]:
    """A training that is ready; each call is one whole step."""
    settings = train_settings(targets=targets, steps=MORE_STEPS_THAN_TIMED, resolution=pixels, flip=False)
    steps = Training(concepts, settings, backbone).steps()
    return lambda: next(steps)


class Steps:
    """One family's base and the ways to take a step on it."""

    def __init__(self, shape: Shape, folder: Path) -> None:
        self.pipe, self.pixels = speed.build_pipeline(shape), shape.pixels
        self.plain = baselines.twin(self.pipe)
        self.concepts = concepts_in(folder, 1)

    def rows(self, rounds: int) -> list[dict[str, Any]]:
        """All rows of the family."""
        backbone = Backbone(self.pipe)
        floor = self.floor(backbone)
        cases = [
            speed.case(FLOOR, floor),
            speed.case(f"{FLOOR}{speed.AGAIN}", floor),
            speed.case("tara cross_kv", stepping(backbone, self.concepts, self.pixels)),
            speed.case("tara attention", stepping(backbone, self.concepts, self.pixels, "attention")),
            speed.case("usual script", self.usual()),
        ]
        return speed.timed_rows(STEP, cases, rounds)

    def floor(self, backbone: Backbone) -> Callable[[], Any]:
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


def peak_memory(count: int) -> int:
    """Maximum resident memory of a process that trains so many concepts, in MiB."""
    speed.be_alone()
    backbone = load_base("toyland", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        step = stepping(backbone, concepts_in(Path(folder), count), backbone.resolution)
        for _ in range(2):
            step()
    return full_size.peak_memory() >> 20


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
    return found


ROUNDS = {"sd15": 3, "sdxl": 2, "toyland": 3}


def rows_of(base: str) -> list[dict[str, Any]]:
    """The rows of a full-size family or of the embedded base."""
    if base != "toyland":
        return speed.alone(measure, base, speed.SHAPES[base], ROUNDS[base])
    rows: list[dict[str, Any]] = speed.alone(many_concepts, ROUNDS[base])
    return [{**row, "peak_memory_mib": speed.alone(peak_memory, row["concepts"])} for row in rows]


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
        rows += [speed.skipped("GPU", name, "no NVIDIA GPU here") for name in NEEDS_GPU]
        speed.write(chosen.out, rows, checks)


if __name__ == "__main__":
    main()
