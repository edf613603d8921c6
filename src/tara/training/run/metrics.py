"""Logs the metrics of a run's steps: to its ``metrics.jsonl``, and to TensorBoard or Weights & Biases."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from tara.errors import installation, warn
from tara.storage.files import write_error
from tara.training.settings import TrackerName


def append_metrics(path: Path, row: Mapping[str, Any]) -> None:
    """Append a step's values to a ``metrics.jsonl``; values that are not finite are written as null.

    Raises:
        TaraError: when the file cannot be written or the disk is full.
    """
    try:
        with path.open("ab") as file:
            file.write(to_json(row, inf_nan_mode="null") + b"\n")
    except OSError as failure:
        raise write_error(path, failure) from failure


class _Losses(BaseModel, extra="allow"):
    loss: float | None


class _Row(BaseModel, extra="allow"):
    """A line of ``metrics.jsonl``."""

    step: int
    concepts: dict[str, _Losses]


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a ``metrics.jsonl`` up to the first invalid line: a killed run may leave its last line cut off."""
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            _Row.model_validate_json(line)
        except ValidationError:
            return
        yield json.loads(line)


class Tracker:
    """An external tracker of a run. It does nothing for "none", or if it fails to start, which gives a TaraWarning."""

    def __init__(self, name: TrackerName, folder: Path, project: str = "tara") -> None:
        self._tracker: Any = None
        if name != "none" and find_spec(name) is None:
            _notice(f"{name} is not installed (`{installation(name)}`)")
        elif name != "none":
            self._try(f"{name} did not start", lambda: self._start(name, folder, project))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of a step. A tracker that fails is not called again."""
        if self._tracker is not None:
            self._try("the tracker failed", lambda: self._tracker.log(dict(values), step=step))

    def finish(self) -> None:
        """Close the tracker."""
        if self._tracker is not None:
            self._tracker.finish()
            self._tracker = None

    def _start(self, name: TrackerName, folder: Path, project: str) -> None:
        from accelerate.tracking import TensorBoardTracker, WandBTracker

        if name == "wandb" and os.environ.get("WANDB_MODE") not in {"offline", "disabled"} and not _has_account():
            _notice("wandb has no account here (`wandb login`)")
            return
        tracker: Any = (
            TensorBoardTracker("tensorboard", logging_dir=folder)
            if name == "tensorboard"
            else WandBTracker(project, name=folder.stem, dir=str(folder))
        )
        if hasattr(tracker, "start"):  # older versions of accelerate start at once
            tracker.start()
        self._tracker = tracker

    def _try(self, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        # an error of the user's account or network must not end the training
        except Exception as failure:
            self._tracker = None
            _notice(f"{what} ({failure})")


def _has_account() -> bool:
    """Whether wandb has a key; ``wandb.init`` would ask on the terminal and wait."""
    import wandb  # pyright: ignore[reportMissingImports]

    if "prompt" in signature(wandb.login).parameters:
        return bool(wandb.login(prompt=False, verify=False))
    return bool(wandb.api.api_key)  # of older versions


def _notice(reason: str) -> None:
    warn(f"No tracker: {reason}. Training continues; metrics.jsonl has the same numbers.")
