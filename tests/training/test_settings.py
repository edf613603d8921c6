"""Settings are defined once, and refuse bad values with one sentence."""

import json
from pathlib import Path

import pytest

from tara.errors import TaraError
from tara.families.family import Defaults
from tara.training.concept_settings import ConceptSettings
from tara.training.prompts import VARIED_STYLE_CAPTIONS, VARIED_SUBJECT_CAPTIONS
from tara.training.run.recipe_files import read_recipe
from tara.training.settings import Recipe, TrainSettings, concept_settings, train_settings

RECIPE = """
[settings]
base = "sd15"
rank = 4

[[concept]]
images = "photos/rex"
rare_word = "xlo"
class_word = "dog"
out = "rex.safetensors"

[[concept]]
images = "photos/tom"
rare_word = "szn"
class_word = "cat"
caption_templates = ["a {rare_word} {class_word}", "the {rare_word} {class_word}"]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "concepts.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_toml_file_gives_the_same_settings_as_python(tmp_path: Path):
    recipe = read_recipe(write(tmp_path, RECIPE))
    assert recipe.settings == TrainSettings(base="sd15", rank=4)
    assert recipe.concepts[0] == ConceptSettings(
        images=tmp_path / "photos/rex", rare_word="xlo", class_word="dog", out=tmp_path / "rex.safetensors"
    )
    assert recipe.concepts[1].captions("fixed") == ("a szn cat", "the szn cat")


def test_flags_win_over_the_toml_file(tmp_path: Path):
    assert read_recipe(write(tmp_path, RECIPE), rank=2, steps=5).settings == TrainSettings(base="sd15", rank=2, steps=5)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rank = ", "is not a TOML file"),
        (RECIPE.replace("[settings]", "[setings]"), "no setting 'setings'. Did you mean 'settings'"),
        ('[settings]\nbase = "sd15"\n', r"'concept' is missing: a \[\[concept\]\] table"),
        ("concept = []\n", r"concept = \[\] is refused"),
        (RECIPE.replace('base = "sd15"\n', ""), r"\[settings\]: The base is missing. Give"),
        (RECIPE.replace("rank = 4", "rnak = 4"), "no setting 'rnak'.*rank"),
        (RECIPE.replace("rank = 4", "rank = 0"), r"\[settings\]: rank = 0 is refused"),
        (RECIPE.replace('class_word = "cat"\n', ""), r"\[\[concept\]\] 2: 'class_word' is missing"),
        (
            RECIPE.replace('["a {rare_word} {class_word}", "the {rare_word} {class_word}"]', "[]"),
            r"caption_templates = \[\] is refused: .* at least 1 item",
        ),
        (RECIPE.replace('"photos/rex"', "['photos/rex']"), r"\[\[concept\]\] 1: images = "),
        ("settings = 3\n" + RECIPE.partition("[[")[1] + RECIPE.partition("[[")[2], "settings = 3 is refused"),
        ("concept = [1, 2]\n", r"concept\.0 = 1 is refused"),
        (RECIPE + "a" + ".a" * 3000 + " = 1\n", "nested too deeply"),
    ],
)
def test_a_broken_toml_file_is_refused_in_one_sentence(tmp_path: Path, text: str, sentence: str):
    with pytest.raises(TaraError, match=sentence) as refused:
        read_recipe(write(tmp_path, text))
    assert "\n" not in str(refused.value).replace(text, "")


def test_a_bases_folder_beside_the_toml_file_is_found_and_a_name_stays_a_name(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    recipe = write(tmp_path, RECIPE.replace('"sd15"', '"mine"'))
    assert read_recipe(recipe).settings.base == str(tmp_path / "mine")
    assert read_recipe(write(tmp_path, RECIPE)).settings.base == "sd15"


def test_a_folder_of_masks_is_taken_from_the_toml_files_folder(tmp_path: Path):
    text = RECIPE.replace('rare_word = "xlo"', 'rare_word = "xlo"\nmasks = "photos/rex-masks"')
    assert read_recipe(write(tmp_path, text)).concepts[0].masks == tmp_path / "photos/rex-masks"


def test_damaged_settings_of_a_run_are_refused_in_one_sentence(tmp_path: Path):
    written = '{"settings": {"base": "sd15"}, "concept": [{"rare_word": "xlo", "class_word": "dog"}]}'
    (tmp_path / "settings.json").write_text(written)
    with pytest.raises(TaraError, match=r"\[\[concept\]\] 1: 'images' is missing"):
        read_recipe(tmp_path)


def test_a_runs_base_whose_name_is_too_long_for_a_file_is_a_name(tmp_path: Path):
    concept = {"images": "photos", "rare_word": "xlo", "class_word": "dog"}
    values = {"settings": {"base": "a." * 5000}, "concept": [concept]}
    folder = tmp_path / "xlo-dog.run"
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(values))
    assert read_recipe(folder).settings.base == "a." * 5000


def test_a_missing_toml_file_is_refused(tmp_path: Path):
    with pytest.raises(TaraError, match=r"none\.toml cannot be read"):
        read_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank", 0),
        ("rank", 257),
        ("steps", 0),
        ("steps", 10**7),
        ("alignment_loss", "l2"),
        ("seed", -1),
        ("resolution", 63),
    ],
)
def test_a_value_out_of_range_is_named(name: str, value: object):
    with pytest.raises(TaraError, match=f"^{name} = "):
        train_settings(base="sd15", **{name: value})


def test_a_warm_up_longer_than_the_training_is_refused():
    with pytest.raises(TaraError, match="lr_warmup_steps is 20, but steps is only 10"):
        train_settings(base="sd15", steps=10, lr_warmup_steps=20)


def test_an_empty_rare_word_is_refused():
    with pytest.raises(TaraError, match="word is empty"):
        concept_settings(images="photos", rare_word="  ", class_word="dog")


def test_every_setting_says_what_it_does():
    fields = TrainSettings.model_fields | ConceptSettings.model_fields
    assert [name for name, field in fields.items() if not field.description] == []


def test_the_training_phrase_holds_both_words():
    dog = ConceptSettings(images=Path("rex"), rare_word="xlo", class_word="dog")
    assert dog.phrase == "a photo of a xlo dog"
    ink = ConceptSettings(images=Path("ink"), rare_word="xlo", class_word="style", is_style=True)
    assert ink.phrase == "a picture in xlo style"


def test_varied_captions_all_hold_both_words_and_begin_with_the_training_phrase():
    for template in VARIED_SUBJECT_CAPTIONS + VARIED_STYLE_CAPTIONS:
        assert "{rare_word} {class_word}" in template
    dog = ConceptSettings(images=Path("rex"), rare_word="xlo", class_word="dog", prompt="my {rare_word} {class_word}")
    assert dog.captions("varied")[0] == "my xlo dog"
    assert len(dog.captions("varied")) > 10


def test_alpha_is_the_rank_if_left_out():
    assert TrainSettings(base="sd15", rank=16).scale == 1
    assert TrainSettings(base="sd15", rank=8, alpha=32).scale == 4


def test_the_run_folder_lies_beside_the_first_adapter():
    rex = ConceptSettings(images=Path("a"), rare_word="xlo", class_word="dog", out=Path("out/rex.safetensors"))
    tom = ConceptSettings(images=Path("b"), rare_word="szn", class_word="cat", out=Path("out/tom.safetensors"))
    settings = TrainSettings(base="sd15")
    assert Recipe(settings=settings, concepts=(rex,)).run_folder == Path("out/rex.run")
    assert Recipe(settings=settings, concepts=(rex, tom)).run_folder == Path("out/rex+tom.run")


def test_what_is_not_given_becomes_the_bases_default_and_what_is_given_stays():
    defaults = Defaults(rank=4, learning_rate=3e-3, steps=400, resolution=64, lr_scheduler="cosine")
    settings = TrainSettings(base="sd15", steps=7).with_defaults(defaults)
    assert (settings.rank, settings.learning_rate, settings.resolution) == (4, 3e-3, 64)
    assert (settings.steps, settings.lr_scheduler) == (7, "cosine")
    assert TrainSettings(base="sd15", optimizer="prodigy").with_defaults(defaults).peak_learning_rate == 1


def test_a_folder_that_has_the_name_of_a_short_name_counts_only_if_it_is_a_pipeline(tmp_path: Path):
    (tmp_path / "sd15").mkdir()
    assert read_recipe(write(tmp_path, RECIPE)).settings.base == "sd15"
    (tmp_path / "sd15" / "model_index.json").write_text("{}")
    assert read_recipe(write(tmp_path, RECIPE)).settings.base == str(tmp_path / "sd15")
