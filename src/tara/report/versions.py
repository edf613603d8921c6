"""The versions of all software that results depend on."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from tara.errors import DISTRIBUTION

PACKAGES = (DISTRIBUTION, "torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy", "pillow")


def versions(device: torch.device | None = None) -> dict[str, str]:
    """The versions of Python, the platform, the device and the packages that results depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    if device is not None:
        found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # tara itself, run from a source tree
            continue
    return found
