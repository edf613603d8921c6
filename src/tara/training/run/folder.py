"""The folder of a training run: settings, versions, losses, checkpoints and previews."""

import json
import math
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from tara.adapters.adapter import Adapter
from tara.errors import TaraError
from tara.report.page import PAGE
from tara.report.plots import loss_curve
from tara.storage.files import atomic_write, check_writable, remove_unfinished, write_error
from tara.training.run.checkpoints import TrainingState, checkpoints, load_checkpoint, save_checkpoint
from tara.training.run.interrupts import resume_command
from tara.training.run.recipe_files import with_paths
from tara.training.settings import RUN_SETTINGS, ConceptSettings, Recipe, TrainSettings, distinct_names

PACKAGES = ("tara", "torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy", "pillow")
LINES_AT_ONCE = 20  # steps between two writes of metrics.jsonl


@dataclass(frozen=True)
class RunFolder:
    """``rex.run``: everything about a run but the adapters that it makes."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def loss_curve(self) -> Path:
        return self.path / "loss.png"

    @property
    def hub(self) -> Path:
        """What goes to the model hub."""
        return self.path / "hub"

    @property
    def page(self) -> Path:
        return self.path / PAGE

    def preview(self, step: int, name: str, number: int = 0) -> Path:
        """Where a preview of a concept (its name, see distinct_names) goes; further pictures are numbered."""
        again = f"-{number}" if number else ""
        return self.path / "previews" / name / f"step-{step:06d}{again}.png"

    def previews(self, name: str) -> dict[int, list[Path]]:
        """The previews of one concept by step, in the order of their numbers."""
        found: dict[int, dict[int, Path]] = {}
        for path in (self.path / "previews" / name).glob("step-*.png"):
            match = re.fullmatch(r"step-(\d+)(?:-(\d+))?", path.stem)
            if match:
                found.setdefault(int(match[1]), {})[int(match[2] or 0)] = path
        return {step: [numbered[number] for number in sorted(numbered)] for step, numbered in sorted(found.items())}

    def lacks_previews(self, step: int, concepts: Sequence[ConceptSettings], settings: TrainSettings) -> bool:
        """Whether one of the concepts has fewer previews than it should of a step that is behind."""
        there = (self.previews(name).get(step, []) for name in distinct_names(concepts))
        return step > 0 and any(len(pictures) < settings.preview_images for pictures in there)

    def early_adapter(self, step: int, name: str) -> Path:
        """Where the adapter as it was at a checkpoint goes: one that has not yet learned too much may be the best."""
        return self.checkpoints / f"step-{step:06d}-{name}.safetensors"

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint, None when there is none."""
        found = checkpoints(self.checkpoints)
        return found[-1] if found else None

    def steps_done(self) -> int:
        """Number of steps that the newest checkpoint holds."""
        last = self.last_checkpoint()
        return int(last.stem.removeprefix("step-")) if last else 0

    def last_good(self) -> str:
        """A sentence that tells where a run can go on that has come to numbers that are none."""
        if not (done := self.steps_done()):
            return f"There is no checkpoint in '{self.path}' to go on from."
        return f"The last good checkpoint is step {done}; go on from it with `{resume_command(self.path)}`."

    def begin(self, recipe: Recipe, device: torch.device, after: int = 0) -> None:
        """Write the settings and the versions, and forget what an earlier run left here behind step ``after``."""
        for concept in recipe.concepts:
            remove_unfinished(concept.file.parent, concept.file)
        self.describe(recipe, device)
        if after:
            for early in self.checkpoints.glob("step-*-*.safetensors"):
                step = re.match(r"step-(\d+)-", early.name)
                if step and int(step[1]) > after:  # killed before their checkpoint was written
                    early.unlink()
            kept = [json.dumps(row) for row in self.rows() if row["step"] <= after]
            atomic_write(self.metrics, "".join(line + "\n" for line in kept).encode())
            return
        for old in (*self.checkpoints.glob("step-*.safetensors"), *self.path.glob("previews/*/step-*.png")):
            old.unlink()
        for name in (self.metrics, self.loss_curve, self.page):
            name.unlink(missing_ok=True)

    def describe(self, recipe: Recipe, device: torch.device) -> None:
        """Write the settings and the versions."""
        whole = with_paths(recipe, Path.absolute)  # the run may be resumed from elsewhere
        _write_json(self.path / RUN_SETTINGS, whole.model_dump(mode="json"))
        _write_json(self.path / "versions.json", versions(device))

    def last_state(self) -> TrainingState | None:
        """The newest checkpoint's state, or None."""
        last = self.last_checkpoint()
        return None if last is None else load_checkpoint(last)

    def save(self, state: TrainingState, early: Mapping[str, Adapter] | None = None) -> None:
        """Write the adapters by name as they are at a checkpoint, then it, see `tara.training.run.checkpoints`."""
        # in this order: a run that is killed in between goes on from before, and writes all of them again
        for name, adapter in (early or {}).items():
            adapter.save(self.early_adapter(state.step, name))
        save_checkpoint(self.checkpoints, state)

    def rows(self) -> Iterator[dict[str, Any]]:
        """What ``metrics.jsonl`` holds, up to the first line that is none of ours: the last one may be cut off."""
        if not self.metrics.exists():
            return
        for line in self.metrics.read_bytes().splitlines():
            try:
                _Row.model_validate_json(line)
            except ValidationError:
                return
            yield json.loads(line)

    def plot_losses(self) -> None:
        """Write ``loss.png`` from the losses so far."""
        curves: dict[str, list[tuple[int, float]]] = {}
        for row in self.rows():
            for name, losses in row["concepts"].items():
                if losses["loss"] is not None:
                    curves.setdefault(name, []).append((row["step"], losses["loss"]))
        if curves:
            atomic_write(self.loss_curve, loss_curve(curves))


class _Losses(BaseModel, extra="allow"):
    loss: float | None


class _Row(BaseModel, extra="allow"):
    """A line of ``metrics.jsonl``."""

    step: int
    concepts: dict[str, _Losses]


class Metrics:
    """Appends one line of JSON per step to ``metrics.jsonl``, a few lines at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[str] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a step's numbers; those that are not finite become null."""
        self._waiting.append(json.dumps(_finite(row)))
        if len(self._waiting) >= LINES_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting.

        Raises:
            TaraError: when the disk is full.
        """
        lines, self._waiting = self._waiting, []
        if not lines:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(line + "\n" for line in lines))
        except OSError as failure:
            raise write_error(self._path, failure) from failure


def versions(device: torch.device | None = None) -> dict[str, str]:
    """What numbers depend on besides settings."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    if device is not None:
        found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # tara itself, run from a source tree
            continue
    return found


def check_outputs(recipe: Recipe, folder: RunFolder) -> None:
    """Make sure that the results can be written, before training begins.

    Raises:
        TaraError: for a folder that cannot be written to, or an output that is a folder.
    """
    for concept in recipe.concepts:
        if concept.file.is_dir():
            raise TaraError(
                f"'{concept.file}' is a folder. Give out a file name, such as {concept.rare_word}.safetensors."
            )
        check_writable(concept.file.parent)
    check_writable(folder.path)


def _write_json(path: Path, values: object) -> None:
    atomic_write(path, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
