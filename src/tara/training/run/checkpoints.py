"""Checkpoints of a training run: one safetensors file each, its JSON in the header."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from tara.errors import TaraError
from tara.storage.files import atomic_write
from tara.storage.safetensors_file import open_safetensors
from tara.training.state import TrainingState

HEADER_KEY = "tara_checkpoint"
_NAME = re.compile(r"step-(\d+)\.safetensors")


def save_checkpoint(folder: Path, state: TrainingState, keep: int = 2) -> Path:
    """Write ``step-000250.safetensors``, whole or not at all, and delete all but the last ``keep`` checkpoints.

    Files named after a checkpoint, such as ``step-000250-rex.safetensors``, are deleted with it.

    Raises:
        TaraError: when the folder is not writable or the disk is full.
    """
    path = folder / f"step-{state.step:06d}.safetensors"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    # in one entry: the library writes several in an order that changes from run to run
    header = {HEADER_KEY: json.dumps({"step": state.step, "sha256": _digest(tensors), **state.plain})}
    atomic_write(path, safetensors.torch.save(tensors, metadata=header))
    for old in checkpoints(folder)[:-keep]:
        for file in (old, *folder.glob(f"{old.stem}-*.safetensors")):
            file.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the oldest first."""
    files = folder.iterdir() if folder.is_dir() else ()
    numbered = [(int(match[1]), path) for path in files if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(numbered)]


def load_checkpoint(path: Path) -> TrainingState:
    """Read a checkpoint onto the CPU; raises TaraError when the file is damaged or is no checkpoint."""
    try:
        with open_safetensors(path) as file:
            header: dict[str, str] = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- it is not a dict
        plain: dict[str, Any] = dict(json.loads(header[HEADER_KEY]))
        step = int(plain.pop("step"))
        if plain.pop("sha256", whole := _digest(tensors)) != whole:  # older ones have none
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
