"""The folder of a training run: settings, versions, losses, checkpoints and previews."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from tara.adapters.adapter import Adapter
from tara.errors import TaraError
from tara.report.page import PAGE
from tara.report.plots import loss_curve
from tara.report.versions import versions
from tara.storage.files import atomic_write, check_writable, remove_unfinished, write_error
from tara.training.run.checkpoints import checkpoints, save_checkpoint
from tara.training.run.recipe_files import RUN_SETTINGS, comparable, recipe_json
from tara.training.settings import Recipe
from tara.training.state import TrainingState

LINES_AT_ONCE = 20  # steps between two writes of metrics.jsonl
PREVIEW = re.compile(r"step-(\d+)-\d+\.png")


class RunFolder:
    """``rex.run``: everything about a run but the adapters that it makes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints, self.previews = path / "checkpoints", path / "previews"
        self.metrics, self.loss_curve, self.page = path / "metrics.jsonl", path / "loss.png", path / PAGE
        self.settings, self.versions = path / RUN_SETTINGS, path / "versions.json"
        self.hub = path / "hub"
        """What goes to the model hub."""

    def preview(self, step: int, name: str, number: int = 0) -> Path:
        """Where a numbered preview of a concept (its name, see `distinct_names`) is written."""
        return self.previews / name / f"step-{step:06d}-{number:02d}.png"

    def previews_of(self, name: str) -> dict[int, list[Path]]:
        """The previews of one concept by step, in the order of their numbers."""
        by_step: dict[int, list[Path]] = {}
        for path in sorted((self.previews / name).glob("step-*.png")):
            if match := PREVIEW.fullmatch(path.name):
                by_step.setdefault(int(match[1]), []).append(path)
        return dict(sorted(by_step.items()))

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint, None when there is none."""
        return next(reversed(checkpoints(self.checkpoints)), None)

    def steps_done(self) -> int:
        """Number of steps that the newest checkpoint holds."""
        last = self.last_checkpoint()
        return int(last.stem.removeprefix("step-")) if last else 0

    def begin(
        self, recipe: Recipe, device: torch.device, asked: Mapping[str, Any] | None = None, after: int = 0
    ) -> None:
        """Write the settings and the versions, and delete what an earlier run left here behind step ``after``.

        ``asked`` is what `tara.training.run.recipe_files.comparable` says of the recipe as it was given.
        """
        for concept in recipe.concepts:
            remove_unfinished(concept.file.parent, concept.file)
        atomic_write(self.settings, recipe_json(recipe, asked or comparable(recipe)).encode())
        atomic_write(self.versions, (json.dumps(versions(device), indent=2) + "\n").encode())
        if after:
            kept = [json.dumps(row) + "\n" for row in self.rows() if row["step"] <= after]
            atomic_write(self.metrics, "".join(kept).encode())
            stale = [path for path in self.checkpoints.glob("step-*-*.safetensors") if _step_of(path) > after]
        else:
            results = (self.metrics, self.loss_curve, self.page)
            stale = [*self.checkpoints.glob("step-*.safetensors"), *self.previews.glob("*/step-*.png"), *results]
        for path in stale:
            path.unlink(missing_ok=True)

    def save(self, state: TrainingState, early: Mapping[str, Adapter] | None = None) -> None:
        """Write a checkpoint, and before it the adapters by name as they are then: the best one may be an early one."""
        # in this order: a run that is killed in between goes on from before, and writes all of them again
        for name, adapter in (early or {}).items():
            adapter.save(self.checkpoints / f"step-{state.step:06d}-{name}.safetensors")
        save_checkpoint(self.checkpoints, state)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of ``metrics.jsonl``, up to the first line that is none of ours: the last one may be cut off."""
        for line in self.metrics.read_bytes().splitlines() if self.metrics.exists() else ():
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


def _step_of(path: Path) -> int:
    match = re.match(r"step-(\d+)-", path.name)
    return int(match[1]) if match else 0


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
        self._lines: list[str] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a step's numbers; those that are not finite become null."""
        self._lines.append(to_json(row, inf_nan_mode="null").decode() + "\n")
        if len(self._lines) >= LINES_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write the lines that wait; raises TaraError when the disk is full."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(lines))
        except OSError as failure:
            raise write_error(self._path, failure) from failure


def check_outputs(recipe: Recipe) -> None:
    """Refuse (TaraError) an output that is a folder, or that lies in a folder that cannot be written to."""
    for concept in recipe.concepts:
        if concept.file.is_dir():
            raise TaraError(
                f"'{concept.file}' is a folder. Give out a file name, such as {concept.rare_word}.safetensors."
            )
        check_writable(concept.file.parent)
    check_writable(recipe.run_folder)
