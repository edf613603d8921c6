"""Small photo folders and settings for the tests of training."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tara.adapters.adapter import Adapter
from tara.families.base import Base
from tara.training.settings import ConceptSettings, TrainSettings


def photo_folder(folder: Path, photos: int = 3, seed: int = 0) -> Path:
    """Blocky random pictures of 32 x 32 pixels."""
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
    """A training of a few steps that moves far enough to be seen."""
    return TrainSettings(**({"base": "tiny", "steps": 4, "rank": 2, "learning_rate": 1e-2, "batch_size": 2} | changes))


def in_float64(pipe: Any) -> Base:
    """A backbone that computes in double precision."""
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        part = getattr(pipe, name, None)
        if part is not None:
            part.to(torch.float64)
    return Base(pipe)


def difference(one: Adapter, other: Adapter) -> float:
    """Largest difference of any factor, relative to the largest value of that factor."""
    assert one.layers.keys() == other.layers.keys()
    pairs = [
        (getattr(one.layers[path], part), getattr(other.layers[path], part)) for path in one.layers for part in "ab"
    ]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs)
