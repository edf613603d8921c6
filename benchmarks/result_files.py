"""What every result file of a benchmark tells: where and how it was made, and which bounds hold."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from typing import Any


def circumstances() -> dict[str, Any]:
    """Hardware, versions and command of a result file."""
    return {
        "hardware": f"{platform.machine()} CPU",
        "versions": {name: version(name) for name in ("tara", "torch", "diffusers", "transformers", "numpy")}
        | {"python": platform.python_version()},
        "command": " ".join(["python", *sys.argv]),
    }


def check(name: str, value: float, bound: str, holds: bool) -> dict[str, Any]:
    """One bound that the project sets itself, as result files hold it."""
    return {"name": name, "value": value, "bound": bound, "holds": bool(holds)}
