"""What a photo folder says by its names, its number of photos and their size."""

from pathlib import Path

import pytest
from PIL import Image

from tara.errors import TaraWarning
from tara.families.base import Base
from tara.training.image_batch import encode
from tara.training.inputs import check_inputs
from tara.training.settings import concept_settings
from tara.training.text_batch import TextCache
from training_fixtures import photo_folder, quick, two_concepts


def test_one_photo_and_small_photos_are_advised_on(shared_base: Base, tmp_path: Path):
    concept = two_concepts(tmp_path)[0]
    for name in ("1.png", "2.png"):
        (concept.images / name).unlink()
    Image.new("RGB", (15, 40)).save(concept.images / "0.png")
    with pytest.warns(TaraWarning) as warned:
        check_inputs([concept], quick(), shared_base)
    alone, small = [str(one.message) for one in warned]
    assert alone.startswith("There is one photo of 'xlo dog': images will repeat its pose and background.")
    assert small.startswith("1 of 1 photos of 'xlo dog' are enlarged more than twice to 32 pixels (0.png is 15 × 40)")


@pytest.fixture
def kohya(tmp_path: Path) -> Path:
    for repeats, words in ((10, "xlo dog"), (20, "xlo dog asleep")):
        photo_folder(tmp_path / "photos" / f"{repeats}_{words}", photos=2)
    return tmp_path / "photos"


def test_a_folder_named_as_for_kohya_gives_the_words_and_the_repeats(shared_base: Base, kohya: Path):
    concept = concept_settings(images=kohya)
    assert (concept.rare_word, concept.class_word) == ("xlo", "dog")
    with pytest.warns(TaraWarning, match=r"rare and class word 'xlo dog'\. Its repeats \(10, 20\) only weigh"):
        inputs = check_inputs([concept], quick(), shared_base)
    ((photos,),) = encode(inputs, {}, TextCache(shared_base))
    numbers = [[id(one) for one in photos.latents].count(id(latents)) for latents in photos.latents]
    assert numbers == [1, 1, 2, 2, 2, 2]
    assert len(photos.captions) == 6


def test_words_that_are_given_win_over_the_folders_name(shared_base: Base, kohya: Path):
    concept = concept_settings(images=kohya, rare_word="sks", class_word="wolf")
    with pytest.warns(TaraWarning, match="'xlo dog'; the adapter acts on 'sks wolf'"):
        check_inputs([concept], quick(), shared_base)


def test_a_folder_whose_name_has_the_rare_word_alone_lacks_the_class_word(tmp_path: Path):
    with pytest.raises(Exception, match="'class_word' is missing"):
        concept_settings(images=photo_folder(tmp_path / "5_xlo"))
