"""What every result file of a benchmark tells: where and how it was made, and which bounds hold."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

VERSIONS = ("tara", "torch", "diffusers", "transformers", "peft", "safetensors", "numpy")


def hardware() -> str:
    """The processor, its cores and the memory."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    memory = psutil.virtual_memory().total / 2**30
    return f"{platform.machine()} CPU ({model or platform.processor()}), {os.cpu_count()} cores, {memory:.0f} GiB"


def circumstances() -> dict[str, Any]:
    """Hardware, versions and command of a result file."""
    return {
        "hardware": hardware(),
        "versions": {name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
        "command": " ".join(["python", *sys.argv]),
    }


def check(name: str, value: float, bound: str, holds: bool) -> dict[str, Any]:
    """One bound that the project sets itself, as result files hold it."""
    return {"name": name, "value": value, "bound": bound, "holds": bool(holds)}
