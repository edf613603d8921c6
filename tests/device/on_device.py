"""Trains and generates on the simulated device and prints as JSON what was counted.

The tests start it as a process of its own, because the device is registered for a whole process.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import simulated_device
from simulated_device import NAME, counts

import tiny_bases
from tara.families.base import Base
from tara.inference.pipeline import Pipeline
from tiny_adapters import ATTENTION, random_adapter
from training_fixtures import quick, training_of, two_concepts

PROMPT = "a xlo dog and a szn cat"
STEPS = 3
GENERATED = ("sd tara", "sd sum", "sd regions", "sd composite", "sdxl tara")
BUILDS = {"sd": tiny_bases.sd_pipeline, "sdxl": tiny_bases.sdxl_pipeline}


def counted(run: Callable[[], object]) -> dict[str, int]:
    counts.clear()
    run()
    return dict(counts)


def difference(one: Any, other: Any) -> int:
    return max(abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True))


def generated(build: str, composer: str) -> dict[str, Any]:
    """Transfers of a request of few steps and of one with one more, and how far the image is from the CPU's."""
    targets = ATTENTION if composer == "regions" else ()
    cpu = Base(BUILDS[build]())
    adapters = [
        random_adapter(cpu, word, kind, seed=seed, **({"targets": targets} if targets else {}))
        for seed, (word, kind) in enumerate((("xlo", "dog"), ("szn", "cat")))
    ]
    settings: dict[str, Any] = {"composer": composer, "seeds": 3}
    (expected,) = Pipeline(cpu)(PROMPT, adapters, steps=STEPS, **settings)
    pipeline = Pipeline(BUILDS[build]().to(NAME))
    before = torch.get_rng_state()
    images: list[Any] = list(pipeline(PROMPT, adapters, steps=STEPS, **settings))  # and its texts are encoded now
    few, more = (
        counted(lambda steps=steps: images.extend(pipeline(PROMPT, adapters, steps=steps, **settings)))
        for steps in (STEPS, STEPS + 1)
    )
    return {
        "to_host_a_step": more.get("to_host", 0) - few.get("to_host", 0),
        "float64": few.get("float64", 0),
        "untouched_default_generator": torch.equal(before, torch.get_rng_state()),
        "difference": difference(images[0], expected),
    }


def stock(build: str) -> dict[str, Any]:
    """The stock pipeline's own transfers a step."""
    pipe = BUILDS[build]().to(NAME)
    pipe.set_progress_bar_config(disable=True)

    def run(steps: int) -> Callable[[], object]:
        generator = torch.Generator("cpu").manual_seed(3)
        return lambda: pipe("a dog", num_inference_steps=steps, generator=generator)

    few, more = counted(run(STEPS)), counted(run(STEPS + 1))
    return {"to_host_a_step": more.get("to_host", 0) - few.get("to_host", 0)}


def trained(build: str, **changes: Any) -> dict[str, Any]:
    """Transfers of a training step, and how far its losses are from those of a training on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        concepts = two_concepts(Path(folder))
        losses: dict[str, list[float]] = {}
        for name, pipe in (("cpu", BUILDS[build]()), (NAME, BUILDS[build]().to(NAME))):
            run = training_of(concepts, quick(**changes), Base(pipe))
            before, transfers, records = torch.get_rng_state(), list[int](), list[Any]()
            counts.clear()
            for record in run.steps():
                records.append(record)
                transfers.append(counts["to_host"] - sum(transfers))
            losses[name] = [concept.loss for record in records for concept in record.concepts]
            same_generator = torch.equal(before, torch.get_rng_state())
            float64 = counts["float64"]
            run.adapters()
    return {
        "to_host_a_step": max(transfers[1:]),
        "float64": float64,
        "untouched_default_generator": same_generator,
        "difference": max(abs(one - other) for one, other in zip(*losses.values(), strict=True)),
    }


def mixing() -> str:
    """What an operation on tensors of both devices says."""
    try:
        torch.ones(2).to(NAME) + torch.ones(2)
    except RuntimeError as failure:
        return str(failure)
    return ""


def main() -> None:
    torch.set_num_threads(1)
    found = {
        "mixing": mixing(),
        "stock": {build: stock(build) for build in BUILDS},
        "generated": {case: generated(*case.split()) for case in GENERATED},
        "trained": {
            "sd cross_kv": trained("sd"),
            "sd attention": trained("sd", targets="attention", gradient_checkpointing=True),
            "sd prodigy": trained("sd", optimizer="prodigy", learning_rate=1.0),
        },
    }
    print(json.dumps(found))


if __name__ == "__main__":
    assert simulated_device.NAME == NAME
    main()
