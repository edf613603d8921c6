"""An adapter that was written once is read for ever: a file of every format version, and the picture that it draws.

The base's weights follow from their names alone: releases of transformers differ in the order in which they draw them.

``python tests/test_compatibility.py`` writes the files of the present version; those of earlier ones are never written
again.
"""

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import tiny_bases
from tara.adapters.adapter import load_adapter
from tara.adapters.card import FORMAT_VERSION
from tara.families.base import Base
from tara.inference.pipeline import Pipeline
from tiny_adapters import random_adapter

FILES = Path(__file__).parent / "compatibility"
VERSIONS = sorted(int(re.sub(r"\D", "", path.stem)) for path in FILES.glob("v*.safetensors"))
LEVELS = 2
"""Of 255: what other versions of torch round otherwise."""


def base() -> StableDiffusionPipeline:
    """The tiny base with weights that no release draws otherwise: normal in 1 / sqrt(inputs), norms 1, biases 0."""
    pipe = tiny_bases.sd_pipeline()
    for model in (pipe.unet, pipe.vae, pipe.text_encoder):
        for name, parameter in model.named_parameters():
            name = name.removeprefix("text_model.")  # a module that some releases have
            if parameter.dim() > 1:
                values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(parameter.shape)
                parameter.data = torch.tensor(values, dtype=torch.float32) / parameter[0].numel() ** 0.5
            else:
                parameter.data.fill_(1 if name.endswith("weight") else 0)
    return pipe


def drawn(*adapters: Path) -> Image.Image:
    pipeline = Pipeline(Base(base()))
    (image,) = pipeline("a xlo dog on the beach", [load_adapter(path) for path in adapters], [3], steps=4)
    return image


def distance(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def test_every_version_has_its_file():
    assert list(range(1, FORMAT_VERSION + 1)) == VERSIONS


@pytest.mark.filterwarnings("ignore:.* times the norm of its weight")  # random weights, stronger than any trained ones
@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_of_every_version_says_and_generates_what_it_did(version: int):
    path = FILES / f"v{version}.safetensors"
    card = load_adapter(path).card
    assert (card.format_version, card.rare_word, card.class_word, card.family) == (version, "xlo", "dog", "sd-32")
    assert (card.rank, card.alpha, card.context) == (4, 16, "delta")
    expected = Image.open(FILES / f"v{version}.png")
    assert distance(drawn(path), expected) <= LEVELS
    assert distance(drawn(), expected) > 2 * LEVELS  # it is the adapter that makes it


def _write() -> None:
    path = FILES / f"v{FORMAT_VERSION}.safetensors"
    random_adapter(Base(base()), context="delta").save(path)
    drawn(path).save(path.with_suffix(".png"))
    print(load_adapter(path).card.family, distance(drawn(path), drawn()))


if __name__ == "__main__":
    _write()
