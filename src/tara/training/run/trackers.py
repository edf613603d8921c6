"""Losses to TensorBoard or Weights & Biases; a tracker that is not there never stops a training."""

import os
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, Literal

from tara.errors import TaraWarning

TrackerName = Literal["none", "tensorboard", "wandb"]


class Tracker:
    """Where the numbers of a run go besides its own folder; perhaps nowhere."""

    def __init__(self, name: TrackerName, folder: Path, project: str = "tara") -> None:
        """Start the tracker, or warn (TaraWarning) why there is none."""
        self._tracker: Any = None
        try:
            reason = _missing(name)
            if reason is None and name != "none":
                self._tracker = _start(name, folder, project)
        # whatever goes wrong in somebody's account or network, the training is worth more than its tracker
        except Exception as failure:
            reason = f"{name} did not start ({failure})"
        if reason:
            _notice(reason)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Pass on the numbers of a step; a tracker that fails is left out from then on."""
        if self._tracker is None:
            return
        try:
            self._tracker.log(dict(values), step=step)
        except Exception as failure:
            self._tracker = None
            _notice(f"the tracker failed ({failure})")

    def finish(self) -> None:
        """Close the tracker."""
        if self._tracker is not None:
            self._tracker.finish()
            self._tracker = None


def _missing(name: TrackerName) -> str | None:
    if name == "none":
        return None
    if find_spec(name) is None:
        return f"{name} is not installed (`pip install 'tara[{name}]'`)"
    offline = os.environ.get("WANDB_MODE") in {"offline", "disabled"}
    if name == "wandb" and not offline and not _has_wandb_account():
        return "wandb has no account here (`wandb login`)"
    return None


def _has_wandb_account() -> bool:
    """Whether wandb knows whose runs these are; ``wandb.init`` would ask on the terminal and wait."""
    import wandb  # pyright: ignore[reportMissingImports]

    if "prompt" in signature(wandb.login).parameters:
        return bool(wandb.login(prompt=False, verify=False))
    return bool(wandb.api.api_key)  # of older versions


def _start(name: TrackerName, folder: Path, project: str) -> Any:
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    tracker: Any = (
        TensorBoardTracker("tensorboard", logging_dir=folder)
        if name == "tensorboard"
        else WandBTracker(project, name=folder.stem, dir=str(folder))
    )
    if hasattr(tracker, "start"):  # older versions of accelerate start at once
        tracker.start()
    return tracker


def _notice(reason: str) -> None:
    warnings.warn(
        f"No tracker: {reason}. Training goes on; metrics.jsonl holds the same numbers.", TaraWarning, stacklevel=3
    )
