"""Does a process that draws thousands of pictures stay as it was: its memory, its base's weights, its pictures?

    python benchmarks/long_run.py               2,000 generations; writes benchmarks/results/long_run_cpu.json

One process draws on a tiny base with random weights. Each generation is random: prompt, none to three adapters of both
kinds with random weights, size, number of steps, composer; one in ten is wrong and must be refused, one in twenty is
given up in its midst. A line is fitted to the resident memory after the first 50. In the end the U-Net's weights are
compared bit by bit, and twenty pictures with those that fresh processes draw of the same order.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from result_files import check, circumstances

import tara
from tara.adapters.adapter import Adapter, load_adapter
from tara.errors import TaraError
from tara.families.base import Base
from tara.inference.binding import ActiveAdapter
from tara.training.data.captions import together

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # tiny bases and adapters, made from configs
import tiny_bases  # noqa: E402
from tiny_adapters import ATTENTION, random_adapter  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "long_run_cpu.json"
GENERATIONS, SETTLED, TWINS, GROWTH = 2000, 50, 20, 1.0
WORDS = (("xlo", "dog"), ("szn", "cat"), ("qev", "car"))
PLACES = ("on the beach", "in a house", "on grass", "", "🏖️ מול הים", "\u200b")
COMPOSERS = ("tara", "tara", "tara", "sum", "switch", "composite", "none")
WRONG = (
    {"steps": 0},
    {"composer": "nobody"},
    {"prompt": "a picture of nothing"},
    {"width": 33},
    {"scheduler": "none of them"},
)


def order(number: int) -> dict[str, Any]:
    """What the generation of a number draws; one in ten cannot be drawn."""
    chance = random.Random(number)
    subjects = chance.sample(WORDS, chance.randint(0, 3))
    composer = chance.choice(COMPOSERS)
    told: dict[str, Any] = {
        "prompt": f"{together((f'{word} {kind}', False) for word, kind in subjects)} {chance.choice(PLACES)} {number}",
        "adapters": [f"{word}{chance.choice(['', '-all'])}:{chance.choice([0.5, 1, 1.5])}" for word, _ in subjects],
        "seed": number,
        "steps": chance.randint(1, 2),
        "width": chance.choice([16, 32, 48]),
        "height": chance.choice([16, 32]),
        "guidance_scale": chance.choice([1.0, 5.0]),
        "composer": composer,
    }
    if number % 10 == 3:
        told |= {"adapters": ["xlo:1"]} | chance.choice(WRONG)
    return told


def draw(pipeline: tara.Pipeline, adapters: dict[str, Adapter], told: dict[str, Any]) -> np.ndarray:
    """The picture of an order."""
    settings = dict(told)
    prompt, seed, named = settings.pop("prompt"), settings.pop("seed"), settings.pop("adapters")
    active_adapters = [
        ActiveAdapter(adapters[name], weight=float(weight)) for name, weight in (one.split(":") for one in named)
    ]
    (image,) = pipeline(prompt, active_adapters, [seed], **settings)
    return np.asarray(image)


def given_up(pipeline: tara.Pipeline, adapters: dict[str, Adapter], told: dict[str, Any]) -> None:
    """The same, left in its midst."""

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    try:
        draw(pipeline, adapters, told | {"on_step": stop})
    except (KeyboardInterrupt, TaraError):
        return


def world(folder: Path) -> tuple[tara.Pipeline, dict[str, Adapter]]:
    """The base, and adapters from files: of text keys and values, and of all attention."""
    backbone = Base(tiny_bases.sd_pipeline())
    names = {f"{word}{more}" for word, _ in WORDS for more in ("", "-all")}
    for index, (word, kind) in enumerate(WORDS):
        for more, targets in (("", None), ("-all", ATTENTION)):
            path = folder / f"{word}{more}.safetensors"
            if not path.exists():
                chosen = {} if targets is None else {"targets": targets}
                random_adapter(backbone, word, kind, seed=index, **chosen).save(path)
    return tara.Pipeline(backbone), {name: load_adapter(folder / f"{name}.safetensors") for name in sorted(names)}


def fingerprint(model: torch.nn.Module) -> str:
    """Of every bit of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def resident() -> float:
    """Memory of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def run(count: int, folder: Path) -> dict[str, Any]:
    """All generations, and what they left."""
    pipeline, adapters = world(folder)
    before = fingerprint(pipeline.base.denoiser)
    outcomes = {"drawn": 0, "refused": 0, "given up": 0}
    memory: list[float] = []
    digests: dict[int, str] = {}
    unexpected: list[str] = []
    for number in range(count):
        told = order(number)
        if number % 20 == 7:
            given_up(pipeline, adapters, told)
            outcomes["given up"] += 1
        try:
            digests[number] = hashlib.sha256(draw(pipeline, adapters, told).tobytes()).hexdigest()
            outcomes["drawn"] += 1
        except TaraError:
            outcomes["refused"] += 1
        except Exception as failure:
            unexpected.append(f"{number}: {type(failure).__name__}: {failure}")
        if number % 10 == 9:
            gc.collect()
            memory.append(resident())
        if number % 200 == 199:
            print(f"{number + 1}: {outcomes}, {memory[-1]:.1f} MiB", file=sys.stderr, flush=True)
    twins = random.Random(count).sample(sorted(digests), min(TWINS, len(digests)))
    return {
        "generations": count,
        "outcomes": outcomes,
        "unexpected": unexpected[:5],
        "memory_mib": [round(one, 1) for one in memory],
        "growth_mib_per_100": round(growth(memory), 3),
        "weights_unchanged": fingerprint(pipeline.base.denoiser) == before,
        "twins": {number: twin(number, folder) == digests[number] for number in twins},
    }


def growth(memory: Sequence[float]) -> float:
    """MiB per 100 pictures, of the line that fits best after the first ones."""
    settled = memory[SETTLED // 10 :]
    return float(np.polyfit(np.arange(len(settled)), settled, 1)[0] * 10)


def twin(number: int, folder: Path) -> str:
    """The digest of the picture of a number as a fresh process draws it."""
    command = [sys.executable, __file__, "--one", str(number), "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return done.stdout.split()[-1]


def result_of(row: dict[str, Any]) -> dict[str, Any]:
    """The result file."""
    same, fitted = sum(row["twins"].values()), row["growth_mib_per_100"]
    checks = [
        check("generations", row["generations"], f">= {GENERATIONS}", row["generations"] >= GENERATIONS),
        check("growth of memory, MiB per 100 pictures", fitted, f"< {GROWTH}", fitted < GROWTH),
        check("U-Net's weights bit-identical", row["weights_unchanged"], "== true", row["weights_unchanged"]),
        check("pictures equal to their fresh twins", same, f"== {TWINS}", same == TWINS),
        check("failures that are no sentence", len(row["unexpected"]), "== 0", not row["unexpected"]),
    ]
    return {"rows": [row], **circumstances(), "checks": checks}


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=GENERATIONS)
    parser.add_argument("--out", type=Path, default=RESULTS, help="result file")
    parser.add_argument("--one", type=int, help="draw the picture of this number alone, and print its digest")
    parser.add_argument("--folder", type=Path, help="of the adapters, with --one")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if chosen.one is not None:
        pipeline, adapters = world(chosen.folder)
        print(hashlib.sha256(draw(pipeline, adapters, order(chosen.one)).tobytes()).hexdigest())
        return
    with tempfile.TemporaryDirectory() as folder:
        result = result_of(run(chosen.generations, Path(folder)))
    chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["checks"], indent=1))


if __name__ == "__main__":
    main()
