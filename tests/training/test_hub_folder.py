"""The model card: what the hub reads of it, what people can copy from it, and what it must not contain."""

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import tiny_adapters
import tiny_bases
from tara.adapters.adapter import Adapter, load_adapter
from tara.cli import app
from tara.families.base import Base
from tara.training.concept_settings import ConceptSettings
from tara.training.run.folder import RunFolder
from tara.training.run.hub_folder import write_hub_folder
from tara.training.run.recipe_files import read_recipe
from tara.training.settings import TrainSettings

SETTINGS = TrainSettings(base="sd15", steps=7, rank=4, preview_prompt='the {rare_word} {class_word} on "grass"')


def published(folder: Path, *words: str, repository: str = "me/dogs", **concept: Any) -> Path:
    """The hub folder of a run that has learned a dog for each rare word, with two images of the first."""
    run = RunFolder(folder / "run")
    concepts = [
        ConceptSettings(
            images=folder / "secret",
            rare_word=word,
            class_word="dog",
            out=folder / f"{word}.safetensors",
            **concept,
        )
        for word in words
    ]
    settings = SETTINGS.model_dump(mode="json") | {"learning_rate": 1e-4}
    card = {"family": "sd1", "base": SETTINGS.base, "settings": settings}
    base = Base(tiny_bases.sd_pipeline())
    adapters: list[Adapter] = [tiny_adapters.random_adapter(base, word, **card) for word in words]
    for one, adapter in zip(concepts, adapters, strict=True):
        adapter.save(one.file)
    for number in range(2):
        image = run.preview(SETTINGS.steps, words[0], number)
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(image)
    write_hub_folder(run, concepts, SETTINGS, adapters, repository)
    return run.hub


def text_of(hub: Path) -> str:
    return (hub / "README.md").read_text(encoding="utf-8")


def blocks(hub: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(hub), re.MULTILINE | re.DOTALL)


def test_the_front_matter_is_what_the_hub_reads(tmp_path: Path):
    text = text_of(published(tmp_path, "xlo"))
    assert text.startswith("---\n")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert front["instance_prompt"] == "a photo of a xlo dog"
    assert {"lora", "text-to-image", "diffusers", "tara", "stable-diffusion"} <= set(front["tags"])
    assert front["widget"] == [
        {"text": 'the xlo dog on "grass"', "output": {"url": f"images/xlo-{number}.png"}} for number in range(2)
    ]
    assert "license" not in front


def test_the_card_says_what_the_token_mask_means_without_tara(tmp_path: Path):
    assert SETTINGS.token_mask
    assert "It was trained with the token mask" in text_of(published(tmp_path, "xlo"))


def test_every_image_of_the_card_is_in_the_folder(tmp_path: Path):
    hub = published(tmp_path, "xlo", "szn")
    named = re.findall(r"!\[.*?\]\((.*?)\)", text_of(hub))
    assert named == ["images/xlo-0.png", "images/xlo-1.png"]
    assert all((hub / name).is_file() for name in named)


@pytest.mark.parametrize(
    ("words", "adapters"),
    [
        (("xlo",), ["me/dogs"]),
        (("xlo", "szn"), ["me/dogs/xlo.safetensors", "me/dogs/szn.safetensors"]),
        (("<my>",), ["me/dogs"]),
    ],
)
def test_the_cards_command_and_program_are_valid(words: tuple[str, ...], adapters: list[str], tmp_path: Path):
    hub = published(tmp_path, *words)
    (command,) = blocks(hub, "bash")
    tokens = shlex.split(command)
    app.parse_args(tokens[1:], exit_on_error=False, print_error=False)
    assert tokens[2] == " and ".join(f"a {word} dog" for word in words)
    assert [tokens[place + 1] for place, token in enumerate(tokens) if token == "--adapter"] == adapters
    (program,) = blocks(hub, "python")
    ast.parse(program)
    assert f"a photo of a {words[0]} dog" in program


def test_the_recipe_of_the_card_trains_the_same(tmp_path: Path):
    hub = published(
        tmp_path,
        "xlo",
        "szn",
        is_style=True,
        caption_templates=("a {rare_word} {class_word}", 'in "{rare_word}" {class_word}'),
    )
    (text,) = blocks(hub, "toml")
    (tmp_path / "recipe.toml").write_text(text, encoding="utf-8")
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert recipe.settings == SETTINGS.model_copy(update={"learning_rate": 1e-4})
    assert [concept.rare_word for concept in recipe.concepts] == ["xlo", "szn"]
    assert recipe.concepts[0].caption_templates == ("a {rare_word} {class_word}", 'in "{rare_word}" {class_word}')
    assert recipe.concepts[0].is_style


@pytest.mark.parametrize("words", [("xlo",), ("xlo", "szn")])
def test_stock_diffusers_loads_what_the_card_says(words: tuple[str, ...], tmp_path: Path):
    hub, pipe = published(tmp_path, *words), tiny_bases.sd_pipeline()
    (program,) = blocks(hub, "python")
    name = re.search(r'weight_name="(.*?)"', program)
    pipe.load_lora_weights(hub, **({"weight_name": name[1]} if name else {}))
    (layers,) = pipe.get_list_adapters().values()
    assert len(layers) == 1
    assert any(bool(value.any()) for key, value in pipe.unet.state_dict().items() if "lora_B" in key)


def test_nothing_in_the_folder_names_a_path_of_the_machine(tmp_path: Path):
    hub = published(tmp_path, "xlo", masks=tmp_path / "masks")
    for file in hub.rglob("*.*"):
        assert str(tmp_path).encode() not in file.read_bytes(), file
    assert "photos/xlo-masks" in text_of(hub)


def test_what_an_earlier_upload_left_is_deleted_but_for_a_persons_own_files(tmp_path: Path):
    hub = published(tmp_path, "xlo", "szn")
    (hub / "notes.txt").write_text("mine")
    published(tmp_path, "abc")
    names = {str(path.relative_to(hub)) for path in hub.rglob("*.*")}
    assert names == {
        "README.md",
        "notes.txt",
        "pytorch_lora_weights.safetensors",
        "images/abc-0.png",
        "images/abc-1.png",
    }


def test_an_unknown_owner_is_left_to_be_filled_in(tmp_path: Path):
    assert "--adapter OWNER/dogs " in text_of(published(tmp_path, "xlo", repository="dogs"))


def test_adapters_of_one_file_name_in_different_folders_stay_apart(tmp_path: Path):
    base, run = Base(tiny_bases.sd_pipeline()), RunFolder(tmp_path / "run")
    concepts = [
        ConceptSettings(images=tmp_path, rare_word=word, class_word="dog", out=tmp_path / word / "mine.safetensors")
        for word in ("xlo", "szn")
    ]
    card = {"base": "sd15", "settings": SETTINGS.model_dump(mode="json")}
    adapters = [tiny_adapters.random_adapter(base, concept.rare_word, **card) for concept in concepts]
    for concept, adapter in zip(concepts, adapters, strict=True):
        adapter.save(concept.file)
    write_hub_folder(run, concepts, SETTINGS, adapters, "me/dogs")
    for word in ("xlo", "szn"):
        assert load_adapter(run.hub / f"{word}-dog.safetensors").card.rare_word == word
