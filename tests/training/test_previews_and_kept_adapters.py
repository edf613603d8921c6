"""Previews, which are on by default, and adapters of earlier steps, which are kept on request."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tara.adapters.adapter import load_adapter
from tara.errors import TaraError, TaraWarning
from tara.families.base import Base
from tara.training.loop import StepRecord
from tara.training.run.folder import RunFolder
from tara.training.run.recipe_files import read_recipe
from tara.training.run.run import train_recipe
from tara.training.settings import Recipe
from training_fixtures import Killed, killed_after, recipe_of, same


def kept(recipe: Recipe) -> list[str]:
    return sorted(path.name for path in recipe.concepts[0].file.parent.glob("*.safetensors"))


def test_previews_come_at_every_tenth_of_the_steps_one_image_each(shared_base: Base, tmp_path: Path):
    recipe = recipe_of(tmp_path, concepts=1, steps=20, batch_size=1, preview_every=None)
    train_recipe(recipe, shared_base)
    previews = RunFolder(recipe.run_folder).previews_of("rex")
    assert {step: len(images) for step, images in previews.items()} == dict.fromkeys(range(2, 21, 2), 1)


@pytest.mark.parametrize(("steps", "interval"), [(1000, 100), (1, 1), (15, 1), (399, 39)])
def test_the_interval_is_a_tenth_of_the_steps(steps: int, interval: int, tmp_path: Path):
    assert recipe_of(tmp_path, steps=steps, preview_every=None).settings.preview_interval == interval


def test_losses_are_the_same_with_and_without_previews(shared_base: Base, tmp_path: Path):
    losses: list[list[tuple[float, ...]]] = []
    for name, every in (("with", None), ("without", 0)):
        seen: list[StepRecord] = []
        train_recipe(recipe_of(tmp_path / name, preview_every=every), shared_base, on_step=seen.append)
        losses.append([tuple(concept.loss for concept in record.concepts) for record in seen])
        assert (tmp_path / name / "out" / "rex+tom.run" / "previews").exists() == (name == "with")
    assert losses[0] == losses[1]


def test_adapters_of_earlier_steps_are_kept_beside_the_result(shared_base: Base, tmp_path: Path):
    recipe = recipe_of(tmp_path, steps=6, save_every=2, checkpoint_every=1)
    train_recipe(recipe, shared_base)
    steps = [f"{name}-step-00000{step}.safetensors" for name in ("rex", "tom") for step in (2, 4)]
    assert kept(recipe) == sorted([*steps, "rex.safetensors", "tom.safetensors"])
    early = load_adapter(recipe.concepts[0].file_at(4))
    assert early.card.settings["trained_steps"] == 4
    shorter = recipe_of(tmp_path / "shorter", steps=4)
    assert same(early, train_recipe(shorter, shared_base)[0])


def test_a_resumed_run_keeps_the_same_adapters(shared_base: Base, tmp_path: Path):
    whole, killed = (recipe_of(tmp_path / name, concepts=1, steps=6, save_every=3) for name in ("whole", "killed"))
    train_recipe(whole, shared_base)
    killed = killed.model_copy(update={"settings": killed.settings.model_copy(update={"checkpoint_every": 2})})
    with pytest.raises(Killed):
        train_recipe(killed, shared_base, on_step=killed_after(3))
    killed.concepts[0].file_at(3).unlink()
    train_recipe(read_recipe(killed.run_folder), shared_base, resume=True)
    assert kept(killed) == kept(whole)
    assert same(*(load_adapter(recipe.concepts[0].file_at(3)) for recipe in (whole, killed)))


def test_a_kept_adapter_of_another_training_is_not_replaced(shared_base: Base, tmp_path: Path):
    recipe = recipe_of(tmp_path, concepts=1, steps=3, save_every=1)
    train_recipe(recipe, shared_base)
    before = recipe.concepts[0].file_at(2).read_bytes()
    with pytest.warns(TaraWarning, match="Already trained"):
        train_recipe(recipe, shared_base)
    recipe.concepts[0].file.unlink()
    other = recipe.model_copy(update={"settings": recipe.settings.model_copy(update={"seed": 1})})
    with pytest.raises(TaraError, match=r"overwrite"):
        train_recipe(other, shared_base)
    (tmp_path / "lone").mkdir()
    lone = recipe_of(tmp_path / "lone", concepts=1, steps=3, save_every=1)
    lone.concepts[0].file.parent.mkdir()
    lone.concepts[0].file_at(2).write_bytes(before)
    with pytest.raises(TaraError, match=r"rex-step-000002\.safetensors' exists already"):
        train_recipe(lone, shared_base)
    train_recipe(lone, shared_base, overwrite=True)


def test_a_negative_interval_is_refused(tmp_path: Path, refused: Callable[..., str], here: Path):
    given: list[Any] = ["train", "--images", tmp_path, "--rare-word", "xlo", "--class-word", "dog", "--base", "tiny"]
    assert "save_every = -1 is refused" in refused(*given, "--save-every=-1")
    assert "preview_every = -1 is refused" in refused(*given, "--preview-every=-1")
    assert "here: --save-every." in refused(*given, "--save_every_n_steps", "500")
