"""What the benchmarks share: their command lines, and what every result file says of its run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from tara.errors import DISTRIBUTION
from tara.storage.files import atomic_write

RESULTS = Path(__file__).parent / "results"
VERSIONS = (DISTRIBUTION, "torch", "diffusers", "transformers", "peft", "safetensors", "numpy")


def command_line(description: str | None, result: str | None = None) -> argparse.ArgumentParser:
    """A parser with ``--out``; ``result`` is the default's name in `RESULTS`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=result and RESULTS / result, help="result file")
    return parser


def whole_or_elsewhere(parser: argparse.ArgumentParser, out: Path | None, result: str, whole: bool) -> Path:
    """Where a run is written: the committed ``result`` is replaced by whole runs only, other runs need ``--out``."""
    if out is None and not whole:
        parser.error("this run is not the whole benchmark: give --out FILE, so that the committed result stays")
    return out or RESULTS / result


def hardware() -> str:
    """The processor, its cores and the memory."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    memory = psutil.virtual_memory().total / 2**30
    return f"{platform.machine()} CPU ({model or platform.processor()}), {os.cpu_count()} cores, {memory:.0f} GiB"


def command() -> str:
    """How this script was started."""
    return " ".join(["python", *sys.argv])


def run_info() -> dict[str, Any]:
    """Hardware, versions and command of a result file."""
    return {
        "hardware": hardware(),
        "versions": {name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
        "command": command(),
    }


def check(name: str, value: float, bound: str, holds: bool) -> dict[str, Any]:
    """One bound that the project sets itself, as result files hold it."""
    return {"name": name, "value": value, "bound": bound, "holds": bool(holds)}


def earlier_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a result file, none when there is no file."""
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []


def write(path: Path, result: Any) -> None:
    """Write a result file as JSON."""
    atomic_write(path, (json.dumps(result, indent=1) + "\n").encode())


def show_checks(checks: Sequence[Mapping[str, Any]]) -> None:
    """Print the checks, one a line."""
    console = Console(highlight=False)
    for one in checks:
        console.print(f"{'holds ' if one['holds'] else 'MISSED'}  {one['name']}: {one['value']} ({one['bound']})")
