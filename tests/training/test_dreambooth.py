"""The DreamBooth data set's folders are used as they are."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from tara.cli.train import recipe_of
from tara.errors import TaraError
from tara.families.base import Base
from tara.storage.dreambooth import TABLE, Subject, read_table, subject_of
from tara.storage.images import read_image
from tara.storage.photos import read_photos
from tara.training.run.recipe_files import read_recipe
from tara.training.settings import concept_settings
from training_fixtures import photo_folder, quick, run_steps, training_of

LINES = """Classes

subject_name,class
bear_plushie,stuffed animal
dog6,dog

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
"a {0} {1} in someone's garden".format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token)
]
"""
DATA_SET = next(
    (
        folder
        for above in Path(__file__).absolute().parents
        if (folder := above / "shared" / "data" / "dreambooth").is_dir()
    ),
    None,
)
needs_photos = pytest.mark.skipif(DATA_SET is None, reason="the DreamBooth photos are not here")


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    (tmp_path / TABLE).write_text(LINES, encoding="utf-8")
    photo_folder(tmp_path / "dog6")
    return tmp_path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_table_gives_class_words_and_prompts_whoever_saved_it(tmp_path: Path, end: str, mark: str):
    (tmp_path / TABLE).write_bytes((mark + LINES.replace("\n", end)).encode())
    assert read_table(tmp_path / TABLE) == {
        "bear_plushie": Subject(
            class_word="stuffed animal",
            prompts=("a {rare_word} {class_word} in the jungle", "a {rare_word} {class_word} in someone's garden"),
        ),
        "dog6": Subject(class_word="dog", prompts=("a {rare_word} {class_word} wearing a red hat",)),
    }


@pytest.mark.parametrize("place", ["dog6", "dataset/dog6", "dog6/train"])
def test_the_table_is_found_beside_the_photos_folder_and_one_folder_higher(data_set: Path, place: str):
    subject = subject_of(data_set / place)
    assert subject is not None
    assert (subject.class_word, subject.prompts) == ("dog", ("a {rare_word} {class_word} wearing a red hat",))


def test_things_have_the_prompts_of_things(data_set: Path):
    subject = subject_of(data_set / "bear_plushie")
    assert subject is not None
    assert subject.class_word == "stuffed animal"
    assert subject.prompts[0] == "a {rare_word} {class_word} in the jungle"


def test_a_folder_given_relative_to_where_one_is_finds_its_table(data_set: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(data_set)
    assert concept_settings(images="dog6", rare_word="xlo").class_word == "dog"


def test_a_folder_that_the_table_does_not_know_is_named(data_set: Path):
    with pytest.raises(TaraError, match=rf"{TABLE} has no row for the folder 'dog9'. Did you mean 'dog6'.*class_word"):
        concept_settings(images=data_set / "dog9", rare_word="xlo")


def test_a_class_word_that_is_given_wins_and_the_table_is_not_asked(data_set: Path):
    assert concept_settings(images=data_set / "dog9", rare_word="xlo", class_word="wolf").class_word == "wolf"


def test_without_a_table_the_class_word_is_needed(tmp_path: Path):
    with pytest.raises(TaraError, match="'class_word' is missing"):
        concept_settings(images=tmp_path / "a" / "b" / "dog6", rare_word="xlo", class_word=None)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("dog,dog\n", "names no classes"), ("Classes\n\ndog dog\n", "line 3, 'dog dog', is not 'subject_name,class'")],
)
def test_a_table_that_says_nothing_is_named(tmp_path: Path, text: str, sentence: str):
    (tmp_path / TABLE).write_text(text, encoding="utf-8")
    with pytest.raises(TaraError, match=sentence):
        subject_of(tmp_path / "dog")


def test_a_table_that_is_no_text_is_named(tmp_path: Path):
    (tmp_path / TABLE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaraError, match="cannot be read as text"):
        subject_of(tmp_path / "dog")


def test_flags_and_toml_need_no_class_word_either(data_set: Path):
    from_flags = recipe_of(None, {"base": "sd15", "images": data_set / "dog6", "rare_word": "xlo"})
    toml = data_set / "concepts.toml"
    table = '[settings]\nbase = "sd15"\n[[concept]]\nimages = "dog6"\nrare_word = "xlo"\n'
    toml.write_text(table, encoding="utf-8")
    for recipe in (from_flags, read_recipe(toml)):
        (concept,) = recipe.concepts
        assert (concept.class_word, concept.phrase) == ("dog", "a photo of a xlo dog")
        assert concept.card_examples == ("a xlo dog wearing a red hat",)


def test_the_adapters_card_shows_the_data_sets_prompts(shared_base: Base, data_set: Path):
    concept = concept_settings(images=data_set / "dog6", rare_word="xlo")
    training = training_of([concept], quick(), shared_base)
    assert training.adapters()[0].card.examples == ("a xlo dog wearing a red hat",)


@needs_photos
def test_every_folder_of_the_real_data_set_has_its_class_word_and_prompts():
    assert DATA_SET is not None
    class_words = {}
    for folder in filter(Path.is_dir, DATA_SET.iterdir()):
        concept = concept_settings(images=folder, rare_word="xlo")
        class_words[folder.name] = concept.class_word
        assert len(concept.card_examples) == 25
        assert all(f"xlo {concept.class_word}" in prompt for prompt in concept.card_examples)
    assert class_words["dog"] == "dog"
    assert class_words["bear_plushie"] == "stuffed animal"


@needs_photos
def test_real_photos_train_with_buckets_and_masks_from_the_one_folder(shared_base: Base, tmp_path: Path):
    assert DATA_SET is not None
    shutil.copytree(DATA_SET / "dog", tmp_path / "dog")
    shutil.copy(DATA_SET / TABLE, tmp_path)
    (tmp_path / "masks").mkdir()
    for example in read_photos(tmp_path / "dog", ("",)):
        mask = Image.new("L", example.image.size)
        mask.paste(255, (100, 100, 400, 400))
        mask.save((tmp_path / "masks" / example.name).with_suffix(".png"))
    photo = tmp_path / "dog" / "00.jpg"
    for path in (photo, tmp_path / "masks" / "00.png"):
        read_image(path).crop((0, 0, 400, 640)).save(path)
    concept = concept_settings(images=tmp_path / "dog", rare_word="xlo", masks=tmp_path / "masks")
    records = run_steps(training_of([concept], quick(masked_loss=True, buckets=True, steps=2), shared_base))
    assert [len(records), any(part.skipped for record in records for part in record.concepts)] == [2, False]
