"""The precision of the frozen base: the device's own choice, bfloat16 anywhere, float16 with scaled losses on CUDA."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_bases
from tara.adapters.adapter import Adapter
from tara.families.base import Base
from tara.families.loading import best_precision
from tara.inference.pipeline import Pipeline
from tara.training.checkpoints import load_checkpoint
from tara.training.run import run as training_run
from tara.training.settings import Recipe
from training_fixtures import quick, two_concepts

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Base]:
    """The bases that trainings of this test have loaded."""
    bases: list[Base] = []
    load_base = training_run.load_base

    def remember(*arguments: Any, **options: Any) -> Base:
        bases.append(load_base(*arguments, **options))
        return bases[-1]

    monkeypatch.setattr(training_run, "load_base", remember)
    return bases


def recipe_on_disk(folder: Path, **settings: Any) -> Recipe:
    tiny_bases.sd_pipeline().save_pretrained(folder / "tiny")
    return Recipe(settings=quick(base=str(folder / "tiny"), **settings), concepts=tuple(two_concepts(folder)))


def learned(adapter: Adapter) -> bool:
    """Whether its weights are finite float32 and change something."""
    parts = [part for layer in adapter.layers.values() for part in (layer.a, layer.b)]
    moved = any(bool(layer.b.any()) for layer in adapter.layers.values())
    return moved and all(part.dtype == torch.float32 and bool(part.isfinite().all()) for part in parts)


@pytest.mark.parametrize(
    ("device", "capability", "dtype"),
    [
        ("cuda", (9, 0), torch.bfloat16),
        ("cuda:1", (8, 0), torch.bfloat16),
        ("cuda", (7, 5), torch.float16),
        ("mps", (9, 0), torch.float32),
        ("cpu", (9, 0), torch.float32),
    ],
)
def test_a_device_has_a_precision_of_its_own(
    monkeypatch: pytest.MonkeyPatch, device: str, capability: tuple[int, int], dtype: torch.dtype
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert best_precision(torch.device(device)) == dtype


def test_training_and_generation_leave_the_precision_to_the_device(
    tmp_path: Path, loaded: list[Base], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tara.families.loading.best_precision", lambda _: torch.bfloat16)
    recipe = recipe_on_disk(tmp_path, device="cpu", steps=1)
    assert recipe.settings.precision == "auto"
    (rex, _) = training_run.train_recipe(recipe)
    assert [base.dtype for base in loaded] == [torch.bfloat16]
    assert rex.card.settings["precision"] == "bf16"  # what was used, not who chose it
    assert Pipeline(recipe.settings.base, device="cpu").base.dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_base_is_loaded_in_the_settings_precision_and_adapters_learn_in_float32(
    tmp_path: Path, loaded: list[Base], name: str, dtype: torch.dtype
):
    recipe = recipe_on_disk(tmp_path, precision=name, device="cpu", steps=2)
    adapters = training_run.train_recipe(recipe)
    assert [base.dtype for base in loaded] == [dtype]
    assert all(map(learned, adapters))


@pytest.mark.gpu
@needs_cuda
def test_training_in_float16_scales_the_losses_and_the_adapters_generate_in_float16(tmp_path: Path, loaded: list[Base]):
    recipe = recipe_on_disk(tmp_path, precision="fp16", device="cuda", steps=20)
    adapters = training_run.train_recipe(recipe)
    assert [base.dtype for base in loaded] == [torch.float16]
    assert all(map(learned, adapters))
    last = recipe.run_folder / "checkpoints" / "step-000020.safetensors"
    assert all(factor > 1 for factor, _ in load_checkpoint(last).plain["optimizer"]["loss_scales"])
    rows = [json.loads(line) for line in (recipe.run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert not any(part["skipped"] for part in rows[-1]["concepts"].values())

    pipeline = Pipeline(recipe.settings.base, device="cuda", precision="fp16")
    prompt = "a xlo dog and a szn cat on the beach"
    with_adapters, again, without = (
        np.asarray(pipeline(prompt, used, steps=4)[0], dtype=np.int64) for used in (adapters, adapters, [])
    )
    assert np.abs(with_adapters - again).max() <= 1
    assert not np.array_equal(with_adapters, without)
