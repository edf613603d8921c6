"""Does a process that generates thousands of images keep its memory, its base's weights and its results?

    python benchmarks/long_run.py               2,000 generations; writes benchmarks/results/long_run_cpu.json

One process generates on a tiny base with random weights. Each request is random: prompt, none to three adapters of both
target sets with random weights, size, number of steps, composer; one in ten is invalid and must be refused, one in
twenty is aborted. A line is fitted to the resident memory after the first 50. In the end the U-Net's weights are
compared bit by bit, and twenty images with those that new processes generate from the same request.
"""

from __future__ import annotations

import gc
import hashlib
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
from result_files import check, command_line, run_info, show_checks, write

import tara
from tara.adapters.adapter import Adapter, load_adapter
from tara.errors import TaraError
from tara.families.base import Base
from tara.inference.active_adapter import ActiveAdapter
from tara.training.prompts import together

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))  # tiny bases and adapters, made from configs
import tiny_bases  # noqa: E402
from tiny_adapters import ATTENTION, random_adapter  # noqa: E402

GENERATIONS, SETTLED, TWINS, GROWTH = 2000, 50, 20, 1.0
WORDS = (("xlo", "dog"), ("szn", "cat"), ("qev", "car"))
PLACES = ("on the beach", "in a house", "on grass", "", "🏖️ מול הים", "\u200b")
COMPOSERS = ("tara", "tara", "tara", "sum", "switch", "composite", "none")
INVALID = (
    {"steps": 0},
    {"composer": "nobody"},
    {"prompt": "a picture of nothing"},
    {"width": 33},
    {"scheduler": "none of them"},
)


def request(number: int) -> dict[str, Any]:
    """The request of a number; one in ten is invalid."""
    chance = random.Random(number)
    subjects = chance.sample(WORDS, chance.randint(0, 3))
    composer = chance.choice(COMPOSERS)
    named = together((f"{word} {class_word}", False) for word, class_word in subjects)
    values: dict[str, Any] = {
        "prompt": f"{named} {chance.choice(PLACES)} {number}",
        "adapters": [f"{word}{chance.choice(['', '-all'])}:{chance.choice([0.5, 1, 1.5])}" for word, _ in subjects],
        "seed": number,
        "steps": chance.randint(1, 2),
        "width": chance.choice([16, 32, 48]),
        "height": chance.choice([16, 32]),
        "guidance_scale": chance.choice([1.0, 5.0]),
        "composer": composer,
    }
    if number % 10 == 3:
        values |= {"adapters": ["xlo:1"]} | chance.choice(INVALID)
    return values


def generate(pipeline: tara.Pipeline, adapters: dict[str, Adapter], values: dict[str, Any]) -> np.ndarray:
    """The image of a request."""
    settings = dict(values)
    prompt, seed, named = settings.pop("prompt"), settings.pop("seed"), settings.pop("adapters")
    active_adapters = [
        ActiveAdapter(adapters[name], weight=float(weight)) for name, weight in (one.split(":") for one in named)
    ]
    (image,) = pipeline(prompt, active_adapters, [seed], **settings)
    return np.asarray(image)


def abort(pipeline: tara.Pipeline, adapters: dict[str, Adapter], values: dict[str, Any]) -> None:
    """The same, aborted after a step."""

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    try:
        generate(pipeline, adapters, values | {"on_step": stop})
    except (KeyboardInterrupt, TaraError):
        return


def world(folder: Path) -> tuple[tara.Pipeline, dict[str, Adapter]]:
    """The base, and adapters from files: of text keys and values, and of all attention."""
    base = Base(tiny_bases.sd_pipeline())
    names = {f"{word}{more}" for word, _ in WORDS for more in ("", "-all")}
    for index, (word, class_word) in enumerate(WORDS):
        for more, targets in (("", None), ("-all", ATTENTION)):
            path = folder / f"{word}{more}.safetensors"
            if not path.exists():
                chosen = {} if targets is None else {"targets": targets}
                random_adapter(base, word, class_word, seed=index, **chosen).save(path)
    return tara.Pipeline(base), {name: load_adapter(folder / f"{name}.safetensors") for name in sorted(names)}


def fingerprint(model: torch.nn.Module) -> str:
    """A digest of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def resident() -> float:
    """Memory of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def run(count: int, folder: Path) -> dict[str, Any]:
    """All requests, and the state after them."""
    pipeline, adapters = world(folder)
    before = fingerprint(pipeline.base.denoiser)
    outcomes = {"drawn": 0, "refused": 0, "given up": 0}
    memory: list[float] = []
    digests: dict[int, str] = {}
    unexpected: list[str] = []
    for number in range(count):
        values = request(number)
        if number % 20 == 7:
            abort(pipeline, adapters, values)
            outcomes["given up"] += 1
        try:
            digests[number] = hashlib.sha256(generate(pipeline, adapters, values).tobytes()).hexdigest()
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
    """MiB per 100 images, the slope of the line that fits best after the first ones."""
    settled = memory[SETTLED // 10 :]
    return float(np.polyfit(np.arange(len(settled)), settled, 1)[0] * 10)


def twin(number: int, folder: Path) -> str:
    """The digest of the image of a number as a new process generates it."""
    command = [sys.executable, __file__, "--one", str(number), "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return done.stdout.split()[-1]


def result_of(row: dict[str, Any]) -> dict[str, Any]:
    """The result file."""
    same, fitted = sum(row["twins"].values()), row["growth_mib_per_100"]
    checks = [
        check("generations", row["generations"], f">= {GENERATIONS}", row["generations"] >= GENERATIONS),
        check("growth of memory, MiB per 100 images", fitted, f"< {GROWTH}", fitted < GROWTH),
        check("U-Net's weights bit-identical", row["weights_unchanged"], "== true", row["weights_unchanged"]),
        check("images equal to those of new processes", same, f"== {TWINS}", same == TWINS),
        check("failures without a TaraError", len(row["unexpected"]), "== 0", not row["unexpected"]),
    ]
    return {"rows": [row], **run_info(), "checks": checks}


def main() -> None:
    """The command line."""
    parser = command_line(__doc__, "long_run_cpu.json")
    parser.add_argument("--generations", type=int, default=GENERATIONS)
    parser.add_argument("--one", type=int, help="generate the image of this number alone, and print its digest")
    parser.add_argument("--folder", type=Path, help="folder of the adapters, with --one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if args.one is not None:
        pipeline, adapters = world(args.folder)
        print(hashlib.sha256(generate(pipeline, adapters, request(args.one)).tobytes()).hexdigest())
        return
    with tempfile.TemporaryDirectory() as folder:
        result = result_of(run(args.generations, Path(folder)))
    write(args.out, result)
    show_checks(result["checks"])


if __name__ == "__main__":
    main()
