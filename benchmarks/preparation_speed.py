"""What does it cost before and between images: preparing a prompt, loading, keeping and switching adapters, starting?

    python benchmarks/preparation_speed.py                  writes benchmarks/results/preparation_speed_cpu.json
    python benchmarks/preparation_speed.py --base toyland   measures one base, and keeps the others' rows

SD 1.5 and SDXL at full size, with random weights in bfloat16:

- `preparing`: a prompt with 8 adapters and one with none (encode, keys and values, deltas), relative to 25 denoising
  steps of an image of the family's own size;
- `loading`: 8 adapter files, relative to safetensors' own `load_file` of the same files;
- `memory`: the tensors of 32 loaded adapters and the growth of the process, relative to the size of their files;
- `switching`: the U-Net's weights that change, and the graphs that `torch.compile` builds again, while sets of adapters
  take turns (a backend that only counts: it needs no compiler, and recompiles when any other would).

With the embedded base, `starting`: the time of a process with `tara --help`, and with `tara generate` until the end of
its first denoising step. How cases are interleaved: speed_shared.py.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import speed_shared as speed
import torch
from result_files import command_line
from safetensors.torch import load_file
from speed_shared import Shape

import tara
import toyland
from tara.adapters.adapter import Adapter
from tara.families.base import Base
from tara.families.loading import load_base

PREPARING, LOADING, MEMORY, SWITCHING, STARTING = "preparing", "loading", "memory", "switching", "starting"
STEPS_OF_A_PICTURE = 25
PREPARED, KEPT = 8, 32
TOYLAND = "toyland"
FIRST_STEP = """
import json, os, sys
import tara.inference.pipeline
from tara.cli import main

def first_step_done(*_):
    os._exit(0)

tara.inference.pipeline.DenoisingStep = first_step_done  # what a step is reported as
sys.exit(main(json.loads(sys.argv[1])) or 1)
"""
"""Runs a command until its first denoising step is done."""


class Preparation:
    """One family's base and its adapters, in files and loaded."""

    def __init__(self, shape: Shape, folder: Path, adapters: int) -> None:
        self.pipe, self.pixels = speed.build_pipeline(shape), shape.own_pixels
        self.adapters = speed.random_adapters(Base(self.pipe), adapters)
        self.files = [adapter.save(folder / adapter.name) for adapter in self.adapters]

    def rows(self, rounds: int) -> list[dict[str, Any]]:
        """All rows of the family; the long steps of `preparing` are timed less often than the short parts."""
        return [self.memory(), *self.loading(3 * rounds), *self.preparing(rounds), self.switching()]

    def preparing(self, rounds: int) -> list[dict[str, Any]]:
        """Ratios are to all steps of an image."""
        with tara.prepared(self.pipe, self.prompt(PREPARED)) as arguments:
            stock = {name: value for name, value in arguments.items() if name != "cross_attention_kwargs"}
        step = partial(
            self.pipe, **stock, height=self.pixels, width=self.pixels, num_inference_steps=1, output_type="latent"
        )
        cases = [
            speed.case("denoising step", step),
            *(speed.case("tara", partial(self.prepare, count), adapters=count) for count in (PREPARED, 0)),
        ]
        rows = speed.timed_rows(PREPARING, cases, rounds, warm=False)
        return [
            {**row, "ratio": [float(f"{ratio / STEPS_OF_A_PICTURE:.4g}") for ratio in row["ratio"]]} for row in rows
        ]

    def prompt(self, adapters: int) -> str:
        """A prompt with the words of this many adapters."""
        return " and ".join(f"a {word}" for word in speed.WORDS[:adapters])

    def prepare(self, count: int) -> None:
        """Prompt to keys and values."""
        with tara.prepared(self.pipe, self.prompt(PREPARED), self.adapters[:count]):
            pass

    def loading(self, rounds: int) -> list[dict[str, Any]]:
        """Eight files, loaded by tara and by safetensors."""

        def load(read: Callable[[Path], Any]) -> None:
            for file in self.files[:PREPARED]:
                read(file)

        cases = [
            speed.case("safetensors load_file", partial(load, load_file), times=5),
            speed.case(f"safetensors load_file{speed.AGAIN}", partial(load, load_file), times=5),
            speed.case("tara", partial(load, tara.load_adapter), times=5, adapters=PREPARED),
        ]
        return speed.timed_rows(LOADING, cases, rounds)

    def memory(self) -> dict[str, Any]:
        """The tensors of loaded adapters, and the growth of the process."""
        tara.load_adapter(self.files[0])  # so that imports are done
        process = psutil.Process()
        before = process.memory_info().rss
        loaded = [tara.load_adapter(file) for file in self.files]
        grown = process.memory_info().rss - before
        held = sum(tensor.untyped_storage().nbytes() for adapter in loaded for tensor in _tensors(adapter))
        size = sum(file.stat().st_size for file in self.files)
        layers = [low_rank for adapter in loaded for low_rank in adapter.layers.values()]
        return {
            "part": MEMORY,
            "case": "tara",
            "adapters": len(loaded),
            "file_mb": round(size / len(loaded) / 1e6, 3),
            "tensors_over_file": round(held / size, 4),
            "process_over_file": round(grown / size, 4),
            "dense_matrices": sum(max(one.a.numel(), one.b.numel()) >= one.d_in * one.d_out for one in layers),
        }

    def switching(self) -> dict[str, Any]:
        """Take a step with each of several sets of adapters, through a compiled U-Net, and compare its weights."""
        graphs: list[Any] = []

        def counting(graph: Any, _: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        unet, weights = self.pipe.unet, _weights(self.pipe.unet)
        unet.compile(backend=counting)
        sets = [self.adapters[first : first + count] for first, count in ((0, 0), (0, 1), (1, 1), (0, 8), (2, 4))]
        after: list[int] = []
        changed = 0
        for adapters in sets:
            with tara.prepared(self.pipe, self.prompt(PREPARED), adapters) as arguments:
                self.pipe(**arguments, height=64, width=64, num_inference_steps=1, output_type="latent")
                changed += sum(one != other for one, other in zip(_weights(unet), weights, strict=True))
            after.append(len(graphs))
        return {
            "part": SWITCHING,
            "case": "tara cross_kv",
            "adapters": [len(adapters) for adapters in sets],
            "weights_changed": changed,
            "graphs": after[0],
            "recompilations": after[-1] - after[0],
        }


def _tensors(adapter: Adapter) -> list[torch.Tensor]:
    return [tensor for low_rank in adapter.layers.values() for tensor in (low_rank.a, low_rank.b)]


def _weights(unet: Any) -> list[tuple[int, int]]:
    """Each weight's address, and how often it was written to."""
    return [(parameter.data_ptr(), parameter._version) for parameter in unet.parameters()]


def measure(family: str, shape: Shape, rounds: int, adapters: int = KEPT) -> list[dict[str, Any]]:
    """The rows of one family; runs in a process of its own, whose memory is given back."""
    speed.set_up_process()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        rows = Preparation(shape, Path(folder), adapters).rows(rounds)
    return [{"family": family, **row} for row in rows]


def starting(rounds: int) -> list[dict[str, Any]]:
    """Time to start: the help, and an image on the embedded base."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (adapter,) = speed.random_adapters(load_base(toyland.BASE, device="cpu"), 1)
        file = adapter.save(folder / adapter.name)
        prompt = f"a {adapter.card.rare_word} on the beach"
        flags = ["--base", str(toyland.BASE), "--adapter", str(file), "--seeds", "0"]
        flags += ["--device", "cpu", "--out", str(folder)]
        commands = {
            "tara --help": [sys.executable, "-m", "tara", "--help"],
            "tara generate, first denoising step": [
                sys.executable,
                "-c",
                FIRST_STEP,
                json.dumps(["generate", prompt, *flags]),
            ],
        }
        return [
            {"family": TOYLAND, "part": STARTING, "case": case, **_started(command, rounds)}
            for case, command in commands.items()
        ]


def _started(command: Sequence[str], rounds: int) -> dict[str, Any]:
    wall: list[float] = []
    cpu: list[float] = []
    for _ in range(rounds + 1):
        begun, used = time.perf_counter(), _used_by_children()
        subprocess.run(command, check=True, capture_output=True)
        wall.append(time.perf_counter() - begun)
        cpu.append(_used_by_children() - used)
    # the first run reads its files from disk
    return {"seconds": speed.spread(wall[1:]), "cpu_seconds": speed.spread(cpu[1:]), "rounds": rounds}


def _used_by_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def checks_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bounds of all families' rows."""
    checks: list[dict[str, Any]] = []
    for family in speed.families_of(rows):
        own = [row for row in rows if row.get("family") == family]
        for row in speed.rows_where(own, part=PREPARING, adapters=PREPARED):
            name = f"{family}, preparing 8 adapters over an image of {STEPS_OF_A_PICTURE} steps"
            checks.append(speed.at_most(name, row["ratio"][0], 0.01))
        for row in speed.rows_where(own, part=LOADING, case="tara"):
            checks.append(speed.at_most(f"{family}, loading 8 adapters over load_file", row["ratio"][0], 2))
        for row in speed.rows_where(own, part=MEMORY):
            for name in ("tensors_over_file", "process_over_file"):
                value = abs(row[name] - 1)
                checks.append(speed.at_most(f"{family}, {name}, from 1", round(value, 4), 0.05))
            checks.append(speed.at_most(f"{family}, dense matrices", row["dense_matrices"], 0))
        for row in speed.rows_where(own, part=SWITCHING):
            checks.append(speed.at_most(f"{family}, weights changed by switching", row["weights_changed"], 0))
            checks.append(speed.at_most(f"{family}, recompilations when switching", row["recompilations"], 0))
        for row in speed.rows_where(own, part=STARTING, case="tara --help"):
            checks.append(speed.at_most("tara --help, seconds", row["seconds"][0], 0.3))
    return checks


ROUNDS = {"sd15": 2, "sdxl": 1, TOYLAND: 5}


def main() -> None:
    """The command line: each family runs in a process of its own."""
    parser = command_line(__doc__, "preparation_speed_cpu.json")
    parser.add_argument("--base", choices=ROUNDS, help="only this one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for base in [args.base] if args.base else list(ROUNDS):
        if base == TOYLAND:
            own = speed.alone(starting, ROUNDS[base])
        else:
            own = speed.alone(measure, base, speed.SHAPES[base], ROUNDS[base])
        rows = speed.merged(args.out, own)
        speed.write(args.out, rows, checks_of(rows))


if __name__ == "__main__":
    main()
