"""The state of a training between two steps, and its checkpoints: one safetensors file each, JSON in the header."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from tara.errors import TaraError
from tara.storage.files import atomic_write
from tara.storage.safetensors_file import open_safetensors

HEADER_KEY = "tara_checkpoint"
KEPT = 2
STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingState:
    """The state of a training run after a whole number of steps: everything needed to resume it exactly."""

    step: int
    tensors: Mapping[str, Tensor]
    plain: Mapping[str, Any]


def save_checkpoint(folder: Path, state: TrainingState) -> Path:
    """Write ``step-000250.safetensors`` atomically, and delete all but the last two checkpoints.

    Files named after a checkpoint, such as ``step-000250-rex.safetensors``, are deleted with it.

    Raises:
        TaraError: when the folder is not writable or the disk is full.
    """
    path = folder / f"step-{state.step:06d}.safetensors"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    # one entry, because the library writes several entries in an order that differs between runs
    header = {HEADER_KEY: json.dumps({"step": state.step, "sha256": _digest(tensors), **state.plain})}
    atomic_write(path, safetensors.torch.save(tensors, metadata=header))
    for old in checkpoints(folder)[:-KEPT]:
        for file in (old, *folder.glob(f"{old.stem}-*.safetensors")):
            file.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the oldest first."""
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in files if path.suffix == ".safetensors" and STEP.fullmatch(path.stem)), key=step_of)


def step_of(path: Path) -> int:
    """The step in a file's name, ``step-000250...``; 0 for any other name."""
    match = STEP.match(path.name)
    return int(match[1]) if match else 0


def load_checkpoint(path: Path) -> TrainingState:
    """Read a checkpoint onto the CPU; raises TaraError when the file is damaged or is no checkpoint."""
    try:
        with open_safetensors(path) as file:
            header: dict[str, str] = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- it is not a dict
        plain: dict[str, Any] = dict(json.loads(header[HEADER_KEY]))
        step = int(plain.pop("step"))
        if plain.pop("sha256") != _digest(tensors):
            raise ValueError("its checksum does not match")
    except (TaraError, OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as failure:
        raise TaraError(
            f"'{path}' is not a complete checkpoint of tara. Delete it to resume from the previous one, or train again."
        ) from failure
    return TrainingState(step=step, tensors=tensors, plain=plain)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
