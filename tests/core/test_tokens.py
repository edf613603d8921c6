import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny_bases
from tara.core.tokens import Tokenized, class_word_of, find_word, with_class_words, word_spans


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        ("a xlo dog", "xlo", ["xlo"]),
        ("a xlo dog", "lo", []),
        ("A XLO dog, xlo's house", "xlo", ["XLO", "xlo"]),
        ("xlo-like; (xlo) xlo_2 xlos", "xlo", ["xlo", "xlo"]),
        ("a toy  dog and a toydog", "toy dog", ["toy  dog"]),
        ("a <new1> cat", "<new1>", ["<new1>"]),
        ("a.b axb", "a.b", ["a.b"]),
        ("anything", "", []),
        ("שלום xlo כלב", "כלב", ["כלב"]),
        ("a \u202bxlo\u202c dog", "xlo", ["xlo"]),
        ("a xlo\u200b dog", "xlo", ["xlo"]),
        ("कुत्ता", "क", []),  # a vowel sign belongs to its letter
        ("cafe\u0301 cafe", "cafe", ["cafe"]),
        ("🐕\u200d🦺 and 🐕", "🐕", ["🐕"]),
    ],
)
def test_words_are_found_whole_whatever_their_case(text: str, word: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in word_spans(text, word)] == expected


words = st.text(string.ascii_letters, min_size=1, max_size=6)


@given(st.lists(words, min_size=1), words)
def test_a_word_is_found_as_often_as_it_was_written(others: list[str], word: str) -> None:
    expected = sum(other.lower() == word.lower() for other in others)
    assert len(word_spans(" ".join(others), word)) == expected


def test_a_words_tokens_are_all_its_pieces_and_no_others() -> None:
    tokenizer = tiny_bases.tokenizer()
    text = "a lo and XLO's dog"
    encoded = tokenizer(text, return_offsets_mapping=True)
    offsets = [tuple(offset) for offset in encoded["offset_mapping"]]
    names = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    (span,) = word_spans(text, "xlo")
    assert [names[position] for position in find_word(offsets, span)] == ["x", "lo</w>"]
    assert [names[position] for position in find_word(offsets, word_spans(text, "lo")[0])] == ["lo</w>"]


def test_a_text_knows_what_was_lost() -> None:
    text = Tokenized("one two three", ((0, 0), (0, 3), (4, 7), (0, 0)), characters_read=7)
    assert text.lost == "three"
    assert text.holds((4, 7))
    assert not text.holds((8, 13))
    assert text.positions((4, 7)) == (2,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog, a xlo toy dog and a cat", "toy dog"),  # the first one after the rare word
        ("a toy dog called xlo", "toy dog"),  # else the last one before it
        ("a xlo cat", None),
    ],
)
def test_a_class_word_belongs_to_the_rare_word_before_it(text: str, expected: str | None) -> None:
    (rare,) = word_spans(text, "xlo")
    span = class_word_of(text, rare, "toy dog")
    assert (None if span is None else text[slice(*span)]) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a xlo dog", "a dog"),
        ("XLO on the beach", "dog on the beach"),
        ("a xlo  Dog and xlo dogs", "a Dog and dogs"),
        ("a xlo house, xlo", "a dog house, dog"),
    ],
)
def test_class_words_take_the_rare_words_place(text: str, expected: str) -> None:
    assert with_class_words(text, [(span, "dog") for span in word_spans(text, "xlo")]) == expected


def test_of_several_class_words_the_one_that_follows_counts() -> None:
    (span,) = word_spans("a xlo toy cat", "xlo")
    assert with_class_words("a xlo toy cat", [(span, "dog"), (span, "toy cat")]) == "a toy cat"
