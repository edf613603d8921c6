"""What a training run leaves when it is refused, stopped or repeated."""

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tara.adapters.adapter import Adapter, load_adapter
from tara.errors import TaraError
from tara.families.base import Base
from tara.inference.pipeline import Pipeline
from tara.training.checkpoints import load_checkpoint
from tara.training.loop import StepRecord
from tara.training.run.recipe_files import read_recipe
from tara.training.run.run import train_recipe
from tara.training.run.steps import TrainingInterrupted
from tara.training.settings import Recipe
from training_fixtures import Killed, killed_after, quick, recipe_of, same


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def press_ctrl_c(times: int = 1) -> None:
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def no_8bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)


TOO_LONG = {"prompt": "a photo of " * 40 + "{rare_word} {class_word}"}


@pytest.mark.parametrize(
    ("settings", "concept", "sentence"),
    [
        ({"optimizer": "adamw8bit"}, {}, "needs the package bitsandbytes"),
        ({}, TOO_LONG, "is beyond the part"),
        ({"preview_every": 1, "preview_prompt": "a dog"}, {}, "lacks the rare word"),
    ],
    ids=["package", "caption", "preview"],
)
def test_a_rerun_that_is_refused_leaves_the_finished_run_alone(
    shared_base: Base, tmp_path: Path, no_8bit: None, settings: dict[str, Any], concept: dict[str, Any], sentence: str
):
    recipe = recipe_of(tmp_path, steps=1)
    train_recipe(recipe, shared_base)
    before = contents(tmp_path)
    refused = Recipe(
        settings=quick(steps=2, **settings),
        concepts=tuple(one.model_copy(update=concept) for one in recipe.concepts),
    )
    with pytest.raises(TaraError, match=sentence):
        train_recipe(refused, shared_base, overwrite=True)
    assert contents(tmp_path) == before


def test_a_resumption_that_is_refused_leaves_the_run_alone(shared_base: Base, tmp_path: Path):
    recipe = recipe_of(tmp_path, steps=2)
    train_recipe(recipe, shared_base)
    before = contents(tmp_path)
    with pytest.raises(TaraError, match="written with seed = 0, but now seed = 1"):
        train_recipe(read_recipe(recipe.run_folder, steps=4, seed=1), shared_base, resume=True)
    with pytest.raises(TaraError, match=r"is at step 2, but steps is 1\. Set steps to 2 or more"):
        train_recipe(read_recipe(recipe.run_folder, steps=1), shared_base, resume=True)
    assert contents(tmp_path) == before


def test_a_rerun_that_begins_deletes_the_earlier_one(shared_base: Base, pages: None, tmp_path: Path):
    recipe = recipe_of(tmp_path, concepts=1, steps=2, preview_every=2)
    train_recipe(recipe, shared_base)
    with pytest.raises(Killed):
        train_recipe(recipe, shared_base, overwrite=True, on_step=killed_after(1))
    left = {path.name for path in recipe.run_folder.rglob("*")}
    assert left == {"settings.json", "versions.json", "metrics.jsonl", "checkpoints", "previews", "rex"}
    (row,) = (recipe.run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(row)["step"] == 1


def test_a_refused_run_leaves_no_run_folder_and_generates_no_class_images(
    shared_base: Base, tmp_path: Path, no_8bit: None
):
    settings = {"targets": "attention", "prior_preservation": True, "num_class_images": 1}
    recipe = recipe_of(tmp_path, **settings)
    long = [concept.model_copy(update=TOO_LONG) for concept in recipe.concepts]
    with pytest.raises(TaraError, match="is beyond the part"):
        train_recipe(Recipe(settings=recipe.settings, concepts=tuple(long)), shared_base)
    with pytest.raises(TaraError, match="needs the package bitsandbytes"):  # and so before the base, which is not there
        train_recipe(recipe_of(tmp_path / "b", **settings, base="no-such-base", optimizer="adamw8bit"))
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".png"}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("presses", [2, 3])
def test_a_second_ctrl_c_before_the_first_checkpoint_keeps_the_last_whole_step(
    shared_base: Base, tmp_path: Path, presses: int
):
    recipe = recipe_of(tmp_path / "a", steps=3)

    def press(record: StepRecord) -> None:
        if record.index == 2:
            press_ctrl_c(presses)

    with pytest.raises(TrainingInterrupted, match="step 2 is kept"):
        train_recipe(recipe, shared_base, on_step=press)
    train_recipe(read_recipe(recipe.run_folder), shared_base, resume=True)
    whole = recipe_of(tmp_path / "b", steps=3)
    train_recipe(whole, shared_base)
    for one, other in zip(whole.concepts, recipe.concepts, strict=True):
        assert same(load_adapter(one.file), load_adapter(other.file))


def test_ctrl_c_drops_a_preview_that_is_being_generated(
    shared_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tara.training.run.generated.PREVIEW_STEPS", 2)
    stream, steps = Pipeline.stream, list[int]()

    def pressed(self: Pipeline, *arguments: Any, on_step: Any, **settings: Any) -> Iterator[Any]:
        def on_first_step(step: Any) -> None:
            steps.append(step.step)
            press_ctrl_c()
            on_step(step)

        return stream(self, *arguments, on_step=on_first_step, **settings)

    monkeypatch.setattr(Pipeline, "stream", pressed)
    recipe = recipe_of(tmp_path, preview_every=2, steps=3)
    with pytest.raises(TrainingInterrupted, match="step 2 is kept"):
        train_recipe(recipe, shared_base)
    assert steps == [1]
    assert not (recipe.run_folder / "previews").exists()


def test_ctrl_c_while_the_adapters_are_written_can_be_resumed(
    shared_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(Adapter, "save", lambda *_: press_ctrl_c(2))
        recipe = recipe_of(tmp_path, steps=2)
        with pytest.raises(TrainingInterrupted, match=r"step 2 is kept .* --resume"):
            train_recipe(recipe, shared_base)
    assert not recipe.concepts[0].file.exists()
    train_recipe(read_recipe(recipe.run_folder), shared_base, resume=True)
    assert all(concept.file.exists() for concept in recipe.concepts)


def test_early_adapters_go_with_their_checkpoints(shared_base: Base, tmp_path: Path):
    recipe = recipe_of(tmp_path, checkpoint_every=1)
    train_recipe(recipe, shared_base)
    assert sorted(path.name for path in (recipe.run_folder / "checkpoints").iterdir()) == [
        "step-000003-rex.safetensors",
        "step-000003-tom.safetensors",
        "step-000003.safetensors",
        "step-000004.safetensors",
    ]


def test_a_run_that_was_killed_before_a_checkpoint_writes_its_early_adapters_again(
    shared_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, killed = (recipe_of(tmp_path / name, checkpoint_every=1, steps=3) for name in ("whole", "killed"))
    train_recipe(whole, shared_base)
    with monkeypatch.context() as patch:
        patch.setattr("tara.training.run.folder.save_checkpoint", lambda *_: sys.exit(9))
        with pytest.raises(SystemExit):
            train_recipe(killed, shared_base)
    early = killed.run_folder / "checkpoints" / "step-000001-rex.safetensors"
    assert early.exists()
    early.write_bytes(b"of another run")
    (early.parent / "step-000002-rex.safetensors").write_bytes(b"of another run")
    train_recipe(read_recipe(killed.run_folder), shared_base, resume=True)
    for path in (whole.run_folder / "checkpoints").iterdir():
        assert (early.parent / path.name).read_bytes() == path.read_bytes()
    assert len(list(early.parent.iterdir())) == len(list((whole.run_folder / "checkpoints").iterdir()))


def test_early_adapters_behind_the_last_checkpoint_are_deleted(shared_base: Base, tmp_path: Path):
    recipe = recipe_of(tmp_path, checkpoint_every=2)
    with pytest.raises(Killed):
        train_recipe(recipe, shared_base, on_step=killed_after(3))
    stale = recipe.run_folder / "checkpoints" / "step-000003-rex.safetensors"
    stale.write_bytes(b"killed before its checkpoint")
    train_recipe(read_recipe(recipe.run_folder), shared_base, resume=True)
    assert not stale.exists()
    assert (stale.parent / "step-000002-rex.safetensors").exists()


def test_a_run_with_damaged_settings_is_not_overwritten_unasked(shared_base: Base, tmp_path: Path):
    recipe = recipe_of(tmp_path, steps=1)
    train_recipe(recipe, shared_base)
    (recipe.run_folder / "settings.json").write_text("{")
    with pytest.raises(
        TaraError, match=r"\(1 steps\) whose settings\.json cannot be read\. To replace it, give --overwrite"
    ):
        train_recipe(recipe, shared_base)
    train_recipe(recipe, shared_base, overwrite=True)


@pytest.mark.parametrize("header", ["{}", "[1]", "3", '{"step": "x"}'])
def test_a_checkpoint_without_its_step_is_refused(tmp_path: Path, header: str):
    path = tmp_path / "step-000001.safetensors"
    safetensors.torch.save_file({"weights": torch.zeros(1)}, path, metadata={"tara_checkpoint": header})
    with pytest.raises(TaraError, match="is not a complete checkpoint"):
        load_checkpoint(path)


def test_a_checkpoint_with_a_flipped_bit_is_refused(shared_base: Base, tmp_path: Path):
    recipe = recipe_of(tmp_path, steps=1)
    train_recipe(recipe, shared_base)
    (path,) = (recipe.run_folder / "checkpoints").iterdir()
    content = bytearray(path.read_bytes())
    content[-100] ^= 64
    path.write_bytes(content)
    with pytest.raises(TaraError, match=r"is not a complete checkpoint of tara\. Delete it"):
        train_recipe(read_recipe(recipe.run_folder, steps=4), shared_base, resume=True)


def test_a_run_under_another_name_is_refused_and_not_begun_anew(shared_base: Base, tmp_path: Path):
    recipe = recipe_of(tmp_path, steps=1)
    train_recipe(recipe, shared_base)
    copy = shutil.copytree(recipe.run_folder, tmp_path / "copy.run")
    with pytest.raises(TaraError, match=r"copy\.run' holds the run of 'rex\+tom\.run'.* Call it 'rex\+tom\.run' again"):
        read_recipe(copy)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(copy, elsewhere / "rex+tom.run")
    assert [concept.file.parent for concept in read_recipe(elsewhere / "rex+tom.run").concepts] == [elsewhere] * 2


@pytest.mark.parametrize(
    "line", [b"[1]", b'{"x": 1}', b"\xff\xfe", b'{"step": "a", "concepts": {}}', b'{"step": 1, "concepts": {"rex": 5}}']
)
def test_lines_of_another_program_among_the_metrics_end_them(shared_base: Base, tmp_path: Path, line: bytes):
    recipe = recipe_of(tmp_path, concepts=1, steps=3, checkpoint_every=2, batch_size=1)
    with pytest.raises(Killed):
        train_recipe(recipe, shared_base, on_step=killed_after(2))
    metrics = recipe.run_folder / "metrics.jsonl"
    first, *_ = metrics.read_bytes().splitlines()
    metrics.write_bytes(first + b"\n" + line + b"\n")
    train_recipe(read_recipe(recipe.run_folder), shared_base, resume=True)
    assert [json.loads(row)["step"] for row in metrics.read_text().splitlines()] == [1, 3]


def test_threads_are_those_of_the_settings_and_given_back(shared_base: Base, tmp_path: Path):
    before, seen = torch.get_num_threads(), set[int]()
    torch.set_num_threads(before + 1)
    try:
        train_recipe(
            recipe_of(tmp_path, threads=before, steps=1),
            shared_base,
            on_step=lambda _: seen.add(torch.get_num_threads()),
        )
        assert seen == {before}
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
