"""From photos to files: run folder, previews, trackers, and runs that are stopped and resumed."""

import errno
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import tara
import tiny_bases
from launched_training import TIMEOUT, started
from tara.adapters.adapter import Adapter, load_adapter
from tara.errors import TaraError, TaraWarning
from tara.families.base import Base
from tara.training.checkpoints import checkpoints
from tara.training.loop import StepRecord
from tara.training.prompts import class_phrase
from tara.training.run import steps as run_module
from tara.training.run.metrics import Tracker
from tara.training.run.recipe_files import read_recipe
from tara.training.run.run import train_recipe
from tara.training.run.steps import TrainingInterrupted, resume_command
from tara.training.settings import Recipe, TrainSettings
from training_fixtures import (
    Killed,
    all_same,
    killed_after,
    photo_folder,
    quick,
    recipe_of,
    two_concepts,
)


def files_of(recipe: Recipe) -> list[Adapter]:
    """The adapters that a run has written."""
    return [load_adapter(concept.file) for concept in recipe.concepts]


def previews(recipe: Recipe) -> list[str]:
    """The previews in a run's folder, concept by concept."""
    folder = recipe.run_folder / "previews"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def test_one_call_writes_the_adapter_and_its_run_folder(sd_pipe: Any, pages: None, tmp_path: Path):
    photos, out = photo_folder(tmp_path / "rex"), tmp_path / "out" / "rex.safetensors"
    seen: list[StepRecord] = []
    adapter = tara.train(
        images=photos, rare_word="xlo", class_word="dog", base=sd_pipe, out=out, steps=4, rank=2, on_step=seen.append
    )
    assert [record.index for record in seen] == [1, 2, 3, 4]
    assert load_adapter(out).card == adapter.card
    run = out.with_suffix(".run")
    names = {"settings.json", "versions.json", "metrics.jsonl", "loss.png", "index.html", "checkpoints", "previews"}
    assert {path.name for path in run.iterdir()} == names
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[2]["concepts"]["xlo dog"]["loss"] == seen[2].concepts[0].loss
    noted = json.loads((run / "versions.json").read_text(encoding="utf-8"))["torch"]
    assert noted.split("+")[0] == torch.__version__.split("+")[0]  # a CUDA build's package leaves out what follows
    with Image.open(run / "loss.png") as curve:
        assert curve.size == (1120, 630)


def test_a_run_folder_holds_nothing_but_safetensors_json_images_and_a_page(
    shared_base: Base, pages: None, tmp_path: Path
):
    recipe = recipe_of(tmp_path, checkpoint_every=1, preview_every=1, steps=2)
    train_recipe(recipe, shared_base)
    files = [path for path in recipe.run_folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".jsonl", ".png", ".html"}
    assert (recipe.run_folder / "checkpoints" / "step-000001-rex.safetensors").exists()
    load_adapter(recipe.run_folder / "checkpoints" / "step-000001-tom.safetensors")


def test_previews_show_every_concept_and_change_no_weight(shared_base: Base, tmp_path: Path):
    recipe = recipe_of(tmp_path / "a", preview_every=2, preview_prompt="the {rare_word} {class_word} on grass", steps=3)
    train_recipe(recipe, shared_base)
    assert previews(recipe) == ["rex/step-000002-00.png", "tom/step-000002-00.png"]
    without = recipe_of(tmp_path / "b", steps=3)
    train_recipe(without, shared_base)
    assert all_same(files_of(recipe), files_of(without))


def test_a_run_that_was_killed_and_resumed_gives_the_same_file(shared_base: Base, tmp_path: Path):
    whole = recipe_of(tmp_path / "whole", captions="varied")
    train_recipe(whole, shared_base)
    killed = recipe_of(tmp_path / "killed", captions="varied", checkpoint_every=2)
    with pytest.raises(Killed):  # one step behind a checkpoint, whose work is lost
        train_recipe(killed, shared_base, on_step=killed_after(3))
    assert not killed.concepts[0].file.exists()
    again = read_recipe(killed.run_folder)
    assert again.concepts == killed.concepts
    indices: list[int] = []
    train_recipe(again, shared_base, resume=True, on_step=lambda record: indices.append(record.index))
    assert indices == [3, 4]
    assert all_same(files_of(whole), files_of(killed))
    rows = [json.loads(line)["step"] for line in (killed.run_folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == [1, 2, 3, 4]


def test_a_clock_that_jumps_changes_nothing(shared_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    steady = recipe_of(tmp_path / "steady", checkpoint_every=1)
    train_recipe(steady, shared_base)
    jumps = itertools.cycle([0.0, 4e9, -4e9, 1e9])  # 1970, 2096, 1843
    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: next(jumps))
    monkeypatch.setattr(run_module, "perf_counter", lambda: next(jumps))
    jumping = recipe_of(tmp_path / "jumping", checkpoint_every=1)
    with pytest.raises(Killed):
        train_recipe(jumping, shared_base, on_step=killed_after(3))
    for age, path in enumerate(sorted(jumping.run_folder.rglob("*.safetensors"))):
        os.utime(path, (4e9 - age * 1e8, 4e9 - age * 1e8))  # the last checkpoint looks like the oldest, all are to come
    indices: list[int] = []
    train_recipe(jumping, shared_base, resume=True, on_step=lambda record: indices.append(record.index))
    assert indices == [4]
    assert all_same(files_of(steady), files_of(jumping))


def test_a_run_remembers_the_settings_that_it_was_resumed_with(shared_base: Base, tmp_path: Path):
    recipe = recipe_of(tmp_path, steps=1)
    train_recipe(recipe, shared_base)
    indices: list[int] = []

    def on_step(record: StepRecord) -> None:
        indices.append(record.index)
        raise Killed

    with pytest.raises(Killed):
        train_recipe(read_recipe(recipe.run_folder, steps=5), shared_base, resume=True, on_step=on_step)
    assert indices == [2]
    assert read_recipe(recipe.run_folder).settings.steps == 5


def test_a_run_finds_its_base_from_everywhere(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine").symlink_to(base)
    monkeypatch.chdir(tmp_path)
    recipe = recipe_of(tmp_path, base="mine", steps=1, device="cpu")
    train_recipe(recipe)
    assert load_adapter(recipe.concepts[0].file).card.base == "mine"
    assert read_recipe(recipe.run_folder).settings.base == "mine"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert read_recipe(recipe.run_folder).settings.base == str(tmp_path / "mine")


def train_until_killed(recipe: Path) -> int:
    """What the process does that the test kills."""
    train_recipe(read_recipe(recipe), tiny_bases.sd_pipeline(), on_step=lambda record: print(record.index, flush=True))
    return 0


RECIPE = """
[settings]
base = "tiny"
steps = 400
rank = 2
checkpoint_every = 2

[[concept]]
images = "photos"
rare_word = "xlo"
class_word = "dog"
out = "rex.safetensors"
"""


def test_a_process_killed_in_training_leaves_whole_files_and_can_be_resumed(shared_base: Base, tmp_path: Path):
    photo_folder(tmp_path / "photos")
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    process = started(train_until_killed, [tmp_path / "recipe.toml"], tmp_path, {}, tmp_path / "printed")
    printed = tmp_path / "printed.out"
    while not (printed.exists() and "5\n" in printed.read_text()):
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join(TIMEOUT)
    assert checkpoints(tmp_path / "rex.run" / "checkpoints")
    assert not (tmp_path / "rex.safetensors").exists()
    first: list[int] = []

    def on_step(record: StepRecord) -> None:
        first.append(record.index)
        raise Killed

    with pytest.raises(Killed):
        train_recipe(read_recipe(tmp_path / "rex.run"), shared_base, resume=True, on_step=on_step)
    assert first[0] >= 5


def test_ctrl_c_keeps_a_checkpoint_of_the_very_step_and_names_the_command(sd_pipe: Any, tmp_path: Path):
    recipe = recipe_of(tmp_path / "a", steps=3)
    before = signal.getsignal(signal.SIGINT)

    def press(record: StepRecord) -> None:
        if record.index == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(TrainingInterrupted) as stopped:
        train_recipe(recipe, sd_pipe, on_step=press)
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert stopped.value.step == 2
    assert stopped.value.command == f"tara train {recipe.run_folder} --resume"
    with pytest.raises(TaraError, match=r"unfinished training \(2 steps\).*--overwrite"):
        train_recipe(recipe, sd_pipe)
    train_recipe(read_recipe(recipe.run_folder), sd_pipe, resume=True)
    whole = recipe_of(tmp_path / "b", steps=3)
    train_recipe(whole, sd_pipe)
    assert all_same(files_of(whole), files_of(recipe))


def test_a_finished_run_may_be_trained_anew(shared_base: Base, tmp_path: Path):
    recipe = recipe_of(tmp_path, steps=2)
    first = train_recipe(recipe, shared_base)
    assert all_same(train_recipe(recipe, shared_base, overwrite=True), first)


def test_class_images_are_generated_once_and_the_users_own_count(shared_base: Base, tmp_path: Path):
    own = photo_folder(tmp_path / "class" / "dog", photos=1)
    (own / ".class-0007-x.png").write_bytes(b"half an image")
    recipe = recipe_of(
        tmp_path,
        targets="attention",
        prior_preservation=True,
        num_class_images=3,
        class_folder=tmp_path / "class",
        steps=1,
    )
    generated: list[tuple[int, int]] = []
    train_recipe(recipe, shared_base, on_class_image=lambda there, wanted: generated.append((there, wanted)))
    assert generated == [(2, 3), (3, 3), (1, 3), (2, 3), (3, 3)]
    assert len(list(own.glob("[!.]*"))) == 3
    generated.clear()
    again = lambda there, wanted: generated.append((there, wanted))  # noqa: E731
    train_recipe(recipe, shared_base, overwrite=True, on_class_image=again)
    assert generated == []


def test_a_folder_of_one_class_may_hold_its_images_itself(shared_base: Base, tmp_path: Path):
    (dog, _) = two_concepts(tmp_path)
    own = photo_folder(tmp_path / "class", photos=1)
    settings = quick(
        targets="attention",
        prior_preservation=True,
        num_class_images=2,
        class_folder=own,
        class_prompt="a picture of a {class_word}",
        steps=1,
    )
    train_recipe(Recipe(settings=settings, concepts=(dog,)), shared_base)
    assert len(list(own.glob("*.png"))) == 2
    assert class_phrase(dog, settings) == "a picture of a dog"


def test_a_preview_may_have_several_images(shared_base: Base, tmp_path: Path):
    recipe = recipe_of(tmp_path, concepts=1, steps=1, preview_every=1, preview_images=2)
    train_recipe(recipe, shared_base)
    assert previews(recipe) == ["rex/step-000001-00.png", "rex/step-000001-01.png"]


def test_concepts_whose_files_have_one_name_keep_their_images_and_early_adapters_apart(
    shared_base: Base, tmp_path: Path
):
    concepts = [
        concept.model_copy(update={"out": tmp_path / concept.class_word / "mine.safetensors"})
        for concept in two_concepts(tmp_path)
    ]
    recipe = Recipe(settings=quick(steps=2, preview_every=1, checkpoint_every=1), concepts=tuple(concepts))
    train_recipe(recipe, shared_base)
    assert previews(recipe) == [f"{name}/step-00000{step}-00.png" for name in ("szn-cat", "xlo-dog") for step in (1, 2)]
    for rare_word, class_word in (("xlo", "dog"), ("szn", "cat")):
        early = load_adapter(recipe.run_folder / "checkpoints" / f"step-000001-{rare_word}-{class_word}.safetensors")
        written = load_adapter(tmp_path / class_word / "mine.safetensors")
        assert early.card.rare_word == written.card.rare_word == rare_word


def test_a_resumed_run_finds_its_masks_from_anywhere_and_calls_its_files_as_before(
    shared_base: Base, here: Path, monkeypatch: pytest.MonkeyPatch
):
    (dog, _) = two_concepts(Path("mine"))
    masks = photo_folder(Path("masks"))
    concept = dog.model_copy(update={"masks": masks})
    recipe = Recipe(settings=quick(masked_loss=True, checkpoint_every=1, steps=2), concepts=(concept,))
    with pytest.raises(Killed):
        train_recipe(recipe, shared_base, on_step=killed_after(1))
    assert read_recipe(recipe.run_folder) == recipe
    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    train_recipe(read_recipe(here / recipe.run_folder), shared_base, resume=True)
    assert (here / concept.file).exists()


def test_losses_reach_tensorboard(shared_base: Base, tmp_path: Path):
    pytest.importorskip("tensorboard")
    recipe = recipe_of(tmp_path, report_to="tensorboard", steps=1)
    train_recipe(recipe, shared_base)
    assert list((recipe.run_folder / "tensorboard").rglob("events.out.tfevents.*"))


def test_a_missing_tracker_is_a_notice_and_no_failure(
    shared_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tara.training.run.metrics.find_spec", lambda _: None)
    recipe = recipe_of(tmp_path, report_to="wandb", steps=1)
    with pytest.warns(TaraWarning, match="No tracker: wandb is not installed"):
        train_recipe(recipe, shared_base)
    assert recipe.concepts[0].file.exists()


def login_of_today(key: str | None = None, *, verify: bool = True, prompt: bool = True) -> bool:
    """``wandb.login`` since it takes ``prompt``."""
    assert (key, verify, prompt) == (None, False, False)
    return False


def login_that_asks(key: str | None = None) -> bool:
    raise AssertionError("nobody is there to answer")


@pytest.mark.parametrize(
    ("wandb", "notice"),
    [
        ({"login": login_of_today}, "wandb has no account here"),
        ({"login": login_that_asks, "api": SimpleNamespace(api_key=None)}, "wandb has no account here"),
        ({"login": login_that_asks}, "wandb did not start .*no attribute 'api'"),
    ],
    ids=["today", "before", "neither"],
)
def test_wandb_without_an_account_is_a_notice_whatever_its_version(
    wandb: dict[str, Any], notice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tara.training.run.metrics.find_spec", lambda _: object())
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(**wandb))
    with pytest.warns(TaraWarning, match=f"No tracker: {notice}"):
        Tracker("wandb", tmp_path).log(1, {"loss": 1.0})


@pytest.mark.parametrize("place", ["out", "run folder"])
def test_an_output_that_cannot_be_written_is_refused_before_the_base_is_loaded(tmp_path: Path, place: str):
    (dog, _) = two_concepts(tmp_path)
    if place == "out":
        (tmp_path / "file").write_bytes(b"")
        dog = dog.model_copy(update={"out": tmp_path / "file" / "rex.safetensors"})
    else:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "rex.run").write_bytes(b"")
    recipe = Recipe(settings=TrainSettings(base="no-such-base"), concepts=(dog,))
    with pytest.raises(TaraError, match="is a file, not a folder"):
        train_recipe(recipe)


def test_an_output_that_is_a_folder_is_refused(tmp_path: Path):
    (dog, _) = two_concepts(tmp_path)
    assert dog.out is not None
    dog.out.mkdir(parents=True)
    with pytest.raises(TaraError, match=r"rex\.safetensors' is a folder"):
        train_recipe(Recipe(settings=TrainSettings(base="no-such-base"), concepts=(dog,)))


def test_an_adapter_has_the_suffix_of_its_format(sd_pipe: Any, tmp_path: Path):
    with pytest.raises(TaraError, match=r"call it rex\.safetensors"):
        tara.train(images=tmp_path, rare_word="xlo", class_word="dog", base=sd_pipe, out=tmp_path / "rex.bin")


def test_a_full_disk_leaves_nothing_half_written(shared_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = recipe_of(tmp_path, checkpoint_every=2)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(TaraError, match="The disk is full"):
        train_recipe(recipe, shared_base, on_step=lambda _: monkeypatch.setattr("tara.storage.files.os.fsync", full))
    left = [path.name for path in tmp_path.rglob("*") if path.is_file() and "safetensors" in path.name]
    assert left == []


def test_a_preview_prompt_without_the_rare_word_is_refused_at_once(tmp_path: Path):
    with pytest.raises(TaraError, match="preview_prompt 'a nice dog' lacks the rare word 'xlo'"):
        train_recipe(recipe_of(tmp_path, preview_every=1, preview_prompt="a nice dog"))


def test_a_wrong_setting_is_named_with_the_nearest_one(sd_pipe: Any, tmp_path: Path):
    with pytest.raises(TaraError, match=r"no setting 'learnig_rate'\. Did you mean 'learning_rate'"):
        tara.train(images=tmp_path, rare_word="xlo", class_word="dog", base=sd_pipe, learnig_rate=1e-3)


def test_half_precision_is_refused_on_a_cpu(tmp_path: Path):
    with pytest.raises(TaraError, match="fp16 needs a GPU"):
        train_recipe(recipe_of(tmp_path, precision="fp16", device="cpu"))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(TaraError, match="is not the folder of a training run"):
        read_recipe(tmp_path)


def test_a_moved_run_writes_beside_itself(shared_base: Base, tmp_path: Path):
    recipe = recipe_of(tmp_path, steps=2, checkpoint_every=1)
    with pytest.raises(Killed):
        train_recipe(recipe, shared_base, on_step=killed_after(1))
    moved = recipe.run_folder.rename(tmp_path / recipe.run_folder.name)
    assert read_recipe(moved).run_folder == moved
    train_recipe(read_recipe(moved), shared_base, resume=True)
    assert (tmp_path / "rex.safetensors").exists()
    assert resume_command(moved).endswith("rex+tom.run --resume")
