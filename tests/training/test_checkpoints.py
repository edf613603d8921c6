"""A run resumed from a checkpoint equals one that never stopped; a checkpoint that does not fit is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny_bases
from tara.errors import TaraError
from tara.families.base import Base
from tara.training.checkpoints import load_checkpoint, save_checkpoint
from training_fixtures import (
    all_same,
    quick,
    run_steps,
    training_of,
    two_concepts,
)


@pytest.mark.parametrize(
    "changes",
    [
        {"captions": "varied", "lr_scheduler": "cosine", "targets": "attention"},
        {"optimizer": "prodigy", "learning_rate": None},
    ],
    ids=["adamw", "prodigy"],
)
@pytest.mark.parametrize("shape", ["shared_base", "shared_sdxl"])
def test_resuming_equals_never_having_stopped_bit_for_bit(
    tmp_path: Path, shape: str, changes: dict[str, Any], request: pytest.FixtureRequest
):
    base, concepts, settings = request.getfixturevalue(shape), two_concepts(tmp_path), quick(**changes)
    whole = training_of(concepts, settings, base)
    for record in whole.steps():
        if record.index == 2:
            path = save_checkpoint(tmp_path / "checkpoints", whole.state())
    resumed = training_of(concepts, settings, base)
    resumed.load(load_checkpoint(path))
    assert [record.index for record in run_steps(resumed)] == [3, 4]
    assert all_same(whole.adapters(), resumed.adapters())


def test_a_checkpoint_of_other_concepts_is_refused(shared_base: Base, tmp_path: Path):
    dog, cat = two_concepts(tmp_path)
    state = training_of([dog], quick(), shared_base).state()
    with pytest.raises(TaraError, match="checkpoint has other concepts"):
        training_of([cat], quick(), shared_base).load(state)


@pytest.mark.parametrize("change", [{"seed": 8}, {"token_mask": False}, {"alpha": 3.0}, {"optimizer": "prodigy"}])
def test_a_checkpoint_of_other_settings_is_refused_by_name(shared_base: Base, tmp_path: Path, change: dict[str, Any]):
    concepts = two_concepts(tmp_path)
    state = training_of(concepts, quick(), shared_base).state()
    other = quick(**change) if "optimizer" not in change else quick(**change, learning_rate=None)
    with pytest.raises(TaraError, match=f"checkpoint was written with {next(iter(change))} = .*Resume with the"):
        training_of(concepts, other, shared_base).load(state)


def test_a_checkpoint_of_another_base_of_the_same_shape_is_refused(shared_base: Base, tmp_path: Path):
    concepts = two_concepts(tmp_path)
    state = training_of(concepts, quick(), shared_base).state()
    with pytest.raises(TaraError, match="written with base = "):
        training_of(concepts, quick(), Base(tiny_bases.sd_pipeline(seed=5))).load(state)


def test_only_the_last_checkpoints_are_kept_and_a_damaged_one_is_refused(shared_base: Base, tmp_path: Path):
    state, folder = training_of(two_concepts(tmp_path), quick(), shared_base).state(), tmp_path / "checkpoints"
    for step in range(1, 5):
        last = save_checkpoint(folder, replace(state, step=step))
    assert sorted(path.name for path in folder.iterdir()) == ["step-000003.safetensors", "step-000004.safetensors"]
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(TaraError, match="not a complete checkpoint"):
        load_checkpoint(last)
