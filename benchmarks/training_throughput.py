"""How many images a second does training process, how well is the processor used, and what does compiling add?

    python benchmarks/training_throughput.py                  writes benchmarks/results/training_throughput_cpu.json
    python benchmarks/training_throughput.py --family sd15    measures one family, and keeps the other one's rows
    python benchmarks/training_throughput.py --device cuda    at 512 and 1024 pixels, in wall-clock time

SD 1.5 and SDXL at full size, random weights in bfloat16, without gradient checkpointing; on a CPU SD 1.5 alone, at 256
pixels on one thread. A case is a whole step of 1 or 4 concepts, one photo each, on text keys and values, with the U-Net
as it is or compiled (`torch.compile`, in place). In a row:

- `images_per_second`, and `concepts_per_hour` for runs of 1,000 steps, without what comes before and after them;
- `utilisation`: the floating-point operations of a step per second (products and convolutions, forward and backward),
  relative to one large product of bfloat16 matrices, which is timed interleaved with the steps; for GPUs in `PEAKS`
  also `utilisation_of_peak`, relative to the data sheet. Where it is under 45 %, `profile` has the operations that take
  longest, each with its share of the time.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import baselines
import speed_shared as speed
import torch
from result_files import check
from speed_shared import Case, Shape
from torch.profiler import ProfilerActivity, profile
from training_speed import concepts_in, stepping

from tara.families.base import Base

THROUGHPUT, PRODUCT = "throughput", "one large product"
STEPS_OF_A_RUN = 1000
SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the matrices of the product."""
PEAKS = {"H100 80GB HBM3": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Floating-point operations per second in bfloat16 without sparsity, from the manufacturers' data sheets."""
ENOUGH, SHOWN = 0.45, 6
MEASURED = {"cpu": ("sd15",), "cuda": ("sd15", "sdxl")}
ROUNDS = {"cpu": 3, "cuda": 10}


def measure(
    family: str, shape: Shape, device: str, rounds: int, concepts: Sequence[int] = (1, 4), backend: str = "inductor"
) -> list[dict[str, Any]]:
    """The rows of one family; runs in a process of its own."""
    speed.set_up_process()
    pipe = speed.build_pipeline(shape, device)
    compiled = baselines.twin(pipe)
    compiled.unet.compile(backend=backend)
    pixels = shape.pixels if device == "cpu" else shape.own_pixels
    side = SIDE[device]
    matrix = torch.randn(side, side, device=device).to(torch.bfloat16)
    cases: list[Case] = [speed.case(PRODUCT, lambda: matrix @ matrix, times=4)]
    operations = [2 * side**3]
    with tempfile.TemporaryDirectory() as folder:
        photos = concepts_in(Path(folder), max(concepts))
        for count in concepts:
            for name, used in (("as it is", pipe), ("compiled", compiled)):
                step = stepping(Base(used), photos[:count], pixels)
                cases.append(speed.case(name, step, concepts=count))
                print(f"{family}: {count} concepts, {name}, ready", file=sys.stderr, flush=True)
                # the counter does not see inside a compiled step, which does the same
                operations.append(speed.counted(step)[1] if used is pipe else operations[-1])
        rows = speed.timed_rows(THROUGHPUT, cases, rounds, device)
        best = operations[0] / rows[0]["seconds"][0]
        measured = [
            {"family": family, "pixels": pixels, **_with_rates(row, work, best, _peak(device))}
            for row, work in zip(rows, operations, strict=True)
        ]
        for case, row in zip(cases, measured, strict=True):
            if row["utilisation"] < ENOUGH:
                row["profile"] = _profile(case, device)
    return measured


def _with_rates(row: Mapping[str, Any], operations: int, best: float, peak: float | None) -> dict[str, Any]:
    """A timed row with its rates; ``best`` is the rate of the product, ``peak`` that of the data sheet."""
    seconds, kept = row["seconds"][0], {name: value for name, value in row.items() if name != "ratio"}
    rate = operations / seconds
    rates = {
        **kept,
        "operations": operations,
        "operations_per_second": _short(rate),
        "utilisation": _short(rate / best),
    }
    if peak is not None:
        rates["utilisation_of_peak"] = _short(rate / peak)
    if "concepts" in row:
        rates["images_per_second"] = _short(row["concepts"] / seconds)
        rates["concepts_per_hour"] = _short(3600 * row["concepts"] / (STEPS_OF_A_RUN * seconds))
    return rates


def checks_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The bound: a utilisation of 45 %, or a profile that shows the reason."""
    return [
        check(
            f"{row['family']}, {row['concepts']} concepts, {row['case']}, utilisation",
            row["utilisation"],
            f">= {ENOUGH}, or a profile",
            row["utilisation"] >= ENOUGH or "profile" in row,
        )
        for row in speed.rows_where(rows, part=THROUGHPUT)
        if "concepts" in row
    ]


def _peak(device: str) -> float | None:
    name = "" if device == "cpu" else torch.cuda.get_device_name()
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def _profile(case: Case, device: str) -> dict[str, float]:
    """The operations of a call that take longest, and their shares of its time."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with case.ready() as call, profile(activities=activities) as profiler:
        call()
    times = {
        event.key: event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        for event in profiler.key_averages()
    }
    longest = sorted(times, key=times.__getitem__, reverse=True)[:SHOWN]
    return {name[:60]: _short(times[name] / sum(times.values())) for name in longest}


def _short(number: float) -> float:
    return float(f"{number:.4g}")


def main() -> None:
    """The command line."""
    args = speed.parse_arguments(__doc__)
    torch.set_num_threads(1)
    for family in [args.family] if args.family else MEASURED[args.device]:
        own = speed.alone(measure, family, speed.SHAPES[family], args.device, ROUNDS[args.device])
        rows = speed.merged(args.out, own)
        if args.device == "cpu":
            rows.append(speed.skipped(THROUGHPUT, "on an NVIDIA GPU", speed.NO_GPU))
        speed.write(args.out, rows, checks_of(rows), args.device)


if __name__ == "__main__":
    main()
