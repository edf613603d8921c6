"""Small photo folders and settings for the tests of training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tara.adapters.adapter import Adapter
from tara.families.base import Base
from tara.training.concept_settings import ConceptSettings
from tara.training.inputs import check_inputs
from tara.training.loop import StepRecord, Training
from tara.training.settings import Recipe, TrainSettings


def photo_folder(folder: Path, photos: int = 3, seed: int = 0) -> Path:
    """Blocky random images of 32 x 32 pixels."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(seed)
    for number in range(photos):
        blocks = chance.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((32, 32), Image.Resampling.NEAREST).save(folder / f"{number}.png")
    return folder


def two_concepts(folder: Path, **settings: Any) -> list[ConceptSettings]:
    """A dog of a rare word with two tokens and a cat of one with three, with different numbers of photos."""
    dog = photo_folder(folder / "dog", 3, seed=1)
    cat = photo_folder(folder / "cat", 2, seed=2)
    return [
        ConceptSettings(
            images=dog, rare_word="xlo", class_word="dog", out=folder / "out" / "rex.safetensors", **settings
        ),
        ConceptSettings(
            images=cat, rare_word="szn", class_word="cat", out=folder / "out" / "tom.safetensors", **settings
        ),
    ]


def quick(**changes: Any) -> TrainSettings:
    """A training of a few steps whose weights move far enough for tests."""
    usual = {"base": "tiny", "steps": 4, "rank": 2, "learning_rate": 1e-2, "batch_size": 2, "preview_every": 0}
    return TrainSettings(**(usual | changes))


def recipe_of(folder: Path, concepts: int = 2, **changes: Any) -> Recipe:
    """The dog and the cat, or the dog alone, with quick settings."""
    return Recipe(settings=quick(**changes), concepts=tuple(two_concepts(folder)[:concepts]))


def training_of(
    concepts: Sequence[ConceptSettings], settings: TrainSettings, base: Base, class_folders: Any = None
) -> Training:
    """A training before its first step."""
    return Training(check_inputs(concepts, settings, base), class_folders)


def trained(concepts: Sequence[ConceptSettings], settings: TrainSettings, base: Base) -> list[Adapter]:
    """The adapters after all steps."""
    training = training_of(concepts, settings, base)
    run_steps(training)
    return training.adapters()


def run_steps(training: Training, last: int | None = None) -> list[StepRecord]:
    """Train up to a step, or to the end."""
    records: list[StepRecord] = []
    for record in training.steps():
        records.append(record)
        if record.index == last:
            break
    return records


class Killed(BaseException):
    """Ends a run as a killed process would: nothing handles it."""


def killed_after(step: int) -> Callable[[StepRecord], None]:
    """Ends a run when it reports a step."""

    def on_step(record: StepRecord) -> None:
        if record.index == step:
            raise Killed

    return on_step


def in_float64(pipe: Any) -> Base:
    """A base that computes in double precision."""
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        part = getattr(pipe, name, None)
        if part is not None:
            part.to(torch.float64)
    return Base(pipe)


def factors(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Every factor of an adapter by its layer."""
    return {f"{path}.{part}": getattr(low, part) for path, low in adapter.layers.items() for part in "ab"}


def same(one: Adapter, other: Adapter) -> bool:
    """Whether all factors are equal bit for bit."""
    first, second = factors(one), factors(other)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def all_same(some: Sequence[Adapter], others: Sequence[Adapter]) -> bool:
    """Whether all adapters are equal bit for bit, in their order."""
    return all(same(one, other) for one, other in zip(some, others, strict=True))


def difference(one: Adapter, other: Adapter) -> float:
    """Largest difference of any factor, relative to the largest value of that factor."""
    first, second = factors(one), factors(other)
    assert first.keys() == second.keys()
    return max(
        float((a - second[key]).abs().max() / second[key].abs().max().clamp(min=1e-30)) for key, a in first.items()
    )
