"""Words that a base surely knows are told from made-up ones."""

import pytest

from tara.training.data.ordinary_words import is_ordinary


@pytest.mark.parametrize(
    "word", ["dog", "Dogs", "boxes", "ponies", "crown", "spots", "striped", "standing", "red honey", "laptop", "sepia"]
)
def test_common_words_and_their_regular_forms_are_ordinary(word: str):
    assert is_ordinary(word)


@pytest.mark.parametrize("word", ["xlo", "szn", "sks", "ohwx", "vrk", "red xlo", "bes", "zing", "ted"])
def test_made_up_words_are_not(word: str):
    assert not is_ordinary(word)
