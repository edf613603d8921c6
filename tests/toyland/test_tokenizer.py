"""The tokenizer keeps the captions' own words whole."""

from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from toyland.captions import ACCESSORY_ADJECTIVES, PATTERN_ADJECTIVES, PLACES, caption
from toyland.tokenizer import END, MAX_TOKENS, START
from toyland.world import ACCESSORIES, CLASSES, COLORS, NAMED_STYLES, PATTERNS, random_scene

WORDS = sorted(
    {
        *CLASSES,
        *COLORS,
        *PATTERNS[1:],
        *ACCESSORIES[1:],
        *PATTERN_ADJECTIVES.values(),
        *ACCESSORY_ADJECTIVES.values(),
        *" ".join(PLACES.values()).split(),
        *NAMED_STYLES,
        *("a", "an", "and", "with", "photo", "picture", "plain", "style"),
    }
)


@pytest.mark.parametrize("word", WORDS)
def test_a_word_of_the_captions_is_one_token(tokenizer: CLIPTokenizer, word: str) -> None:
    assert tokenizer.tokenize(word) == [f"{word}</w>"]


@pytest.mark.parametrize("word", ["xlo", "szn", "qev", "zzyzx", "giraffe"])
def test_another_word_falls_to_pieces_that_spell_it(tokenizer: CLIPTokenizer, word: str) -> None:
    pieces = tokenizer.tokenize(word)
    assert len(pieces) > 1
    assert "".join(pieces) == f"{word}</w>"


def test_upper_and_lower_case_are_the_same(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer("A Red CAT")["input_ids"] == tokenizer("a red cat")["input_ids"]


def test_a_prompt_begins_with_start_and_is_filled_up_with_end(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("a cat", padding="max_length")["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert len(tokens) == MAX_TOKENS
    assert tokens[:4] == [START, "a</w>", "cat</w>", END]
    assert set(tokens[4:]) == {END}


def test_a_saved_tokenizer_reads_as_it_was(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    rng = np.random.default_rng(6)
    texts = [caption(random_scene(rng), rng).text for _ in range(50)]
    assert again(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    assert again.model_max_length == MAX_TOKENS


def test_no_caption_is_too_long(tokenizer: CLIPTokenizer) -> None:
    rng = np.random.default_rng(7)
    texts = [caption(random_scene(rng, (0.0, 0.0, 1.0)), rng).text for _ in range(300)]
    assert max(len(ids) for ids in tokenizer(texts)["input_ids"]) <= MAX_TOKENS
