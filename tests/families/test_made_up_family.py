"""The proof of the family seam: a base of a new family trains and generates, and no file of the package changes."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

import made_up_family
import tara
from tara.adapters.adapter import Adapter, load_adapter
from tara.errors import TaraError
from tara.families.base import Base
from tara.families.family import Family
from training_fixtures import photo_folder


@pytest.fixture
def base() -> Base:
    return Base(made_up_family.pipeline(), made_up_family.MIXER)


def test_an_adapter_trains_composes_and_is_released(base: Base, tmp_path: Path) -> None:
    def trained(rare_word: str, class_word: str) -> Adapter:
        photos = photo_folder(tmp_path / rare_word)
        out = tmp_path / f"{rare_word}.safetensors"
        return tara.train(images=photos, rare_word=rare_word, class_word=class_word, base=base, out=out, steps=3)

    rex, tom = trained("xlo", "dog"), trained("szn", "cat")
    assert rex.layers.keys() == {f"blocks.{block}.read.{name}" for block in (0, 1) for name in ("to_k", "to_v")}
    assert (rex.card.family, rex.card.rank) == ("mixer", 2)  # the family's own defaults
    assert load_adapter(tmp_path / "xlo.safetensors").layers.keys() == rex.layers.keys()

    pipeline, prompt = tara.Pipeline(base), "a xlo dog and a szn cat"
    with_both, with_one, without = (
        np.asarray(pipeline(prompt, adapters, seeds=[0], steps=2)[0]) for adapters in ([rex, tom], [rex], [])
    )
    assert not np.array_equal(with_both, with_one)
    assert not np.array_equal(with_one, without)
    assert not base.processors.installed


def test_its_attentions_are_found_by_the_familys_names(base: Base) -> None:
    assert base.text_layers == ["blocks.0.read", "blocks.1.read"]
    assert set(base.attention_layers) - set(base.text_layers) == {"blocks.0.look", "blocks.1.look"}


def test_without_the_family_the_pipeline_is_refused_by_name() -> None:
    with pytest.raises(TaraError, match="A MixerPipeline belongs to no family that tara knows"):
        Base(made_up_family.pipeline())


def test_the_page_about_families_names_every_field_of_a_family_and_no_other():
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
    table = page[page.index("| question | fields |") :]
    named = {name for line in table.splitlines() if line.startswith("|") for name in re.findall(r"`(\w+)`", line)}
    assert named == {field.name for field in dataclasses.fields(Family)} - {"name"}
