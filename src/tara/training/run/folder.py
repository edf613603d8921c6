"""The folder of a training run: settings, versions, losses, checkpoints and previews."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tara.adapters.adapter import Adapter
from tara.errors import TaraError
from tara.report.page import PAGE
from tara.report.versions import versions
from tara.storage.files import atomic_write, check_writable, remove_unfinished
from tara.training.checkpoints import TrainingState, checkpoints, save_checkpoint, step_of
from tara.training.run.metrics import read_metrics
from tara.training.run.recipe_files import RUN_SETTINGS, recipe_json
from tara.training.settings import Recipe


class RunFolder:
    """The folder ``rex.run``: everything that a run writes, except its adapters."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints, self.previews = path / "checkpoints", path / "previews"
        self.metrics, self.loss_curve, self.page = path / "metrics.jsonl", path / "loss.png", path / PAGE
        self.settings, self.versions = path / RUN_SETTINGS, path / "versions.json"
        self.hub = path / "hub"
        """What goes to the model hub."""

    def preview(self, step: int, name: str, number: int) -> Path:
        """Where a numbered preview of a concept (its name, see `distinct_names`) is written."""
        return self.previews / name / f"step-{step:06d}-{number:02d}.png"

    def previews_of(self, name: str) -> dict[int, list[Path]]:
        """The previews of one concept by step, in the order of their numbers."""
        by_step: dict[int, list[Path]] = {}
        for path in sorted((self.previews / name).glob("step-*-*.png")):
            by_step.setdefault(step_of(path), []).append(path)
        return dict(sorted(by_step.items()))

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint, or None without checkpoints."""
        return next(reversed(checkpoints(self.checkpoints)), None)

    def steps_done(self) -> int:
        """Step of the newest checkpoint; 0 without checkpoints."""
        last = self.last_checkpoint()
        return step_of(last) if last else 0

    def begin(self, recipe: Recipe, device: torch.device, asked: Mapping[str, Any], after: int) -> None:
        """Write the settings and the versions, and delete files of an earlier run that belong to steps after ``after``.

        ``asked`` is the result of `tara.training.run.recipe_files.comparable` for the recipe without base defaults.
        """
        for concept in recipe.concepts:
            remove_unfinished(concept.file.parent, concept.file)
        atomic_write(self.settings, recipe_json(recipe, asked).encode())
        atomic_write(self.versions, (json.dumps(versions(device), indent=2) + "\n").encode())
        files = (*self.checkpoints.glob("step-*.safetensors"), *self.previews.glob("*/step-*.png"))
        stale = [path for path in files if step_of(path) > after]
        if after:
            kept = [json.dumps(row) + "\n" for row in read_metrics(self.metrics) if row["step"] <= after]
            atomic_write(self.metrics, "".join(kept).encode())
        else:
            stale += [self.metrics, self.loss_curve, self.page]
        for path in stale:
            path.unlink(missing_ok=True)

    def save(self, state: TrainingState, early: Mapping[str, Adapter]) -> None:
        """Write the adapters of this step, by name, and then a checkpoint. An earlier adapter may be the best one."""
        # in this order: a run that is killed in between resumes at an earlier step and writes all of them again
        for name, adapter in early.items():
            adapter.save(self.checkpoints / f"step-{state.step:06d}-{name}.safetensors")
        save_checkpoint(self.checkpoints, state)


def check_outputs(recipe: Recipe) -> None:
    """Refuse (TaraError) an output that is a folder, or that lies in a folder that cannot be written to."""
    for concept in recipe.concepts:
        if concept.file.is_dir():
            raise TaraError(
                f"'{concept.file}' is a folder. Give out a file name, such as {concept.rare_word}.safetensors."
            )
        check_writable(concept.file.parent)
    check_writable(recipe.run_folder)
