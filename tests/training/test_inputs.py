"""What is checked before a training: captions and their words, concepts, and what a base can take."""

import warnings
from pathlib import Path
from typing import Any

import pytest

import tiny_bases
from tara.errors import TaraError, TaraWarning
from tara.families.base import Base
from tara.training.inputs import check_inputs
from training_fixtures import (
    quick,
    two_concepts,
)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt": "a photo of a dog"}, "instance prompt, 'a photo of a dog', lacks the rare word 'xlo'"),
        ({"prompt": "a photo of a {rare_word}"}, "lacks the class word 'dog'.* alignment_loss = 'off'"),
        ({"caption_templates": ("the {class_word}",)}, r"caption of .*0\.png, 'the dog', lacks the rare word"),
        ({"prompt": "a photo of " * 40 + "{rare_word} {class_word}"}, "'xlo' is beyond the part"),
        ({"class_word": "xlo dog"}, "rare word 'xlo' is in the class word"),
    ],
)
def test_captions_without_their_words_are_refused(
    shared_base: Base, tmp_path: Path, changes: dict[str, Any], sentence: str
):
    dog = two_concepts(tmp_path)[0].model_copy(update=changes)
    with pytest.raises(TaraError, match=sentence):
        check_inputs([dog], quick(), shared_base)


def test_photos_and_words_are_checked_before_the_base_is_loaded(tmp_path: Path):
    def load() -> Base:
        raise AssertionError("the base was loaded")

    dog, _ = two_concepts(tmp_path)
    with pytest.raises(TaraError, match="lacks the rare word"):
        check_inputs([dog.model_copy(update={"prompt": "a dog"})], quick(), load)


def test_lost_text_of_a_long_caption_is_named_once(shared_base: Base, tmp_path: Path):
    dog = two_concepts(tmp_path)[0].model_copy(update={"prompt": "a {rare_word} {class_word}" + " on the beach" * 30})
    with pytest.warns(TaraWarning) as notes:  # three photos share it
        check_inputs([dog], quick(), shared_base)
    (note,) = (str(note.message) for note in notes)
    assert "is too long" in note
    assert note.endswith("beach on the beach'.")
    assert "xlo" not in note


def test_a_common_rare_word_is_warned_of(shared_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tara.families.text.SMALLEST_VOCABULARY", 0)  # the tiny tokenizer's words count
    dog = two_concepts(tmp_path)[0].model_copy(update={"rare_word": "Beach"})
    with pytest.warns(TaraWarning, match="'Beach' is a common word"):
        check_inputs([dog], quick(), shared_base)


def test_the_training_of_a_style_is_advised_on(shared_base: Base, tmp_path: Path):
    style = two_concepts(tmp_path)[0].model_copy(update={"is_style": True, "class_word": "style"})
    with pytest.warns(TaraWarning, match="trains better with targets attention and a caption for each image"):
        check_inputs([style], quick(), shared_base)
    for number, photo in enumerate(sorted(style.images.iterdir())):
        photo.with_suffix(".txt").write_text(f"thing {number} in {style.rare_word} style", encoding="utf-8")
    with pytest.warns(TaraWarning) as notes:
        check_inputs([style], quick(), shared_base)
    (note,) = [str(note.message) for note in notes]
    assert note.endswith("trains better with targets attention.")
    with warnings.catch_warnings():
        warnings.simplefilter("error", TaraWarning)
        check_inputs([style], quick(targets="attention"), shared_base)


def test_two_concepts_of_one_name_are_refused(shared_base: Base, tmp_path: Path):
    concepts = [concept.model_copy(update={"name": "pet"}) for concept in two_concepts(tmp_path)]
    files = [concept.model_copy(update={"out": tmp_path / f"{concept.rare_word}.safetensors"}) for concept in concepts]
    with pytest.raises(TaraError, match="Two concepts are called 'pet'"):
        check_inputs(files, quick(), shared_base)


def test_two_concepts_with_one_output_file_are_refused(shared_base: Base, tmp_path: Path):
    dog, cat = two_concepts(tmp_path)
    with pytest.raises(TaraError, match="Two concepts would write"):
        check_inputs([dog, cat.model_copy(update={"out": dog.out})], quick(), shared_base)


def test_a_resolution_that_the_base_cannot_take_is_refused(shared_base: Base, tmp_path: Path):
    with pytest.raises(TaraError, match="resolution = 33 is refused"):
        check_inputs(two_concepts(tmp_path), quick().model_copy(update={"resolution": 33}), shared_base)


def test_bases_that_generate_but_cannot_be_trained_are_refused(sd_pipe: Any, tmp_path: Path):
    concepts = two_concepts(tmp_path)
    with pytest.raises(TaraError, match="takes 9 channels, but its latents have 4"):
        check_inputs(concepts, quick(), Base(tiny_bases.sd_pipeline(in_channels=9)))
    sd_pipe.scheduler.register_to_config(prediction_type="flow_prediction")
    with pytest.raises(TaraError, match="prediction type 'flow_prediction'"):
        check_inputs(concepts, quick(), Base(sd_pipe))
