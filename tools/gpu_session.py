"""All that wants a GPU, in one command with a limit of time: the most valuable part first, results kept as they come.

    python tools/gpu_session.py --minutes 9 --out DIR              on the first CUDA device
    python tools/gpu_session.py --minutes 2 --out DIR --device cpu runs to its end without one; slow parts are cut short

Parts: the tests marked `gpu`; memory of training; denoising steps with adapters; training steps, compiled and not; and,
with the time that is left, the further training of the base (`recipe-reading.toml`). Each has a share of the time and
is stopped at its limit. The same command goes on where an earlier one ended: parts that are done are not run again, and
the base's training resumes from its checkpoint (`--work`).

DIR holds `session.json` (for each part: state, seconds, end of its output), the benchmarks' `*_gpu.json` (`*_cpu.json`
with `--device cpu`), and the base's U-Net in half precision, in files under 16 MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[1]
GRACE = 10
"""Seconds from the request to stop a part until it is killed."""
LAST_LINES = 12
SAVED_PER_FILE = "15MB"

State = Literal["done", "failed", "stopped at its limit", "no time left"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A command with its share of the session; a part without a share takes what is left."""

    name: str
    command: Sequence[str]
    share: float | None = None


def parts_of(out: Path, work: Path, device: str) -> list[Part]:
    """The parts in order."""
    suffix = "cpu" if device == "cpu" else "gpu"

    def benchmark(name: str, family: str, share: float) -> Part:
        options = ("--family", family, "--device", device, "--out", str(out / f"{name}_{suffix}.json"))
        return Part(name=f"{name} {family}", command=(f"benchmarks/{name}.py", *options), share=share)

    recipe = ROOT / "src/toyland/recipe-reading.toml"
    collect = ("--collect-only",) if device == "cpu" else ()
    made = {"adopt": work / "denoiser.safetensors", "reader": work / "reader.safetensors"}
    stages = [*(stage for stage, file in made.items() if not file.exists()), "denoiser"]
    options = ("--work", str(work), "--recipe", str(recipe), "--device", device)
    return [
        Part(name="tests", command=("-m", "pytest", "-q", "-m", "gpu", *collect, "tests"), share=0.15),
        benchmark("training_memory", "sdxl", 0.08),
        benchmark("training_memory", "sd15", 0.05),
        benchmark("composition_speed", "sd15", 0.12),
        benchmark("composition_speed", "sdxl", 0.15),
        benchmark("training_throughput", "sd15", 0.1),
        benchmark("training_throughput", "sdxl", 0.12),
        Part(name="base", command=("-m", "toyland.train", *stages, *options)),
    ]


def run(part: Part, seconds: float, log: Path) -> dict[str, Any]:
    """Run a part for at most so many seconds, its output in ``log``."""
    begun = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, *part.command],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what it starts is stopped with it
        )
        state: State
        try:
            state = "done" if process.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            state = "stopped at its limit"
        finally:
            _stop(process)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return {
        "state": state,
        "seconds": round(time.monotonic() - begun, 1),
        "command": ["python", *part.command],
        "output": lines[-LAST_LINES:],
    }


def _stop(process: subprocess.Popen[bytes]) -> None:
    for request in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, request)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
            return


def save_unet(work: Path, out: Path) -> None:
    """The moving average of the base's U-Net from its last checkpoint, in half precision, in files under 16 MiB."""
    import torch
    from safetensors.torch import load_file

    from toyland.denoiser_state import average_in, unet_of

    unet = unet_of(average_in(load_file(work / "denoiser.safetensors")), torch.device("cpu"))
    torch.nn.Module.to(
        unet, torch.float16
    )  # diffusers' own `to` warns of parts that should stay in float32: there are none
    unet.save_pretrained(out / "unet", max_shard_size=SAVED_PER_FILE)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; `arguments` are the process's own unless given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="for all parts together")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--work", type=Path, help="the base's work folder (default: DIR-work)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    chosen = parser.parse_args(arguments)
    if chosen.minutes <= 0:
        parser.error("--minutes must be above 0")
    out, work = chosen.out.absolute(), (chosen.work or chosen.out.parent / f"{chosen.out.name}-work").absolute()
    logs = work / "logs"
    for folder in (out, logs):
        folder.mkdir(parents=True, exist_ok=True)
    session = out / "session.json"
    done: dict[str, Any] = json.loads(session.read_text(encoding="utf-8")) if session.exists() else {}
    whole = chosen.minutes * 60
    deadline = time.monotonic() + whole
    for part in parts_of(out, work, chosen.device):
        if done.get(part.name, {}).get("state") == "done":
            print(f"{part.name}: done before")
            continue
        left = deadline - time.monotonic()
        if left <= 0:
            done[part.name] = {"state": "no time left"}
        else:
            limit = left if part.share is None else min(left, part.share * whole)
            done[part.name] = run(part, limit, logs / f"{part.name.replace(' ', '-')}.log")
        print(f"{part.name}: {done[part.name]['state']}", flush=True)
        session.write_text(json.dumps(done, indent=1), encoding="utf-8")
    if (work / "denoiser.safetensors").exists():
        save_unet(work, out)


if __name__ == "__main__":
    main()
