import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny_bases
from tara.core.tokens import Tokenized, find_word, replace_spans, word_spans


@pytest.mark.parametrize(
    ("text", "rare_word", "found"),
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
def test_words_are_found_whole_whatever_their_case(text: str, word: str, found: list[str]) -> None:
    assert [text[start:end] for start, end in word_spans(text, word)] == found


words = st.text(string.ascii_letters, min_size=1, max_size=6)


@given(st.lists(words, min_size=1), words)
def test_a_word_is_found_as_often_as_it_was_written(others: list[str], word: str) -> None:
    expected = sum(other.lower() == word.lower() for other in others)
    assert len(word_spans(" ".join(others), word)) == expected


def test_a_words_tokens_are_all_its_pieces_and_no_others() -> None:
    tokenizer = tiny_bases.tokenizer()
    text = "a lo and XLO's dog"
    found = tokenizer(text, return_offsets_mapping=True)
    offsets = [tuple(offset) for offset in found["offset_mapping"]]
    names = tokenizer.convert_ids_to_tokens(found["input_ids"])
    (span,) = word_spans(text, "xlo")
    assert [names[position] for position in find_word(offsets, span)] == ["x", "lo</w>"]
    assert [names[position] for position in find_word(offsets, word_spans(text, "lo")[0])] == ["lo</w>"]


def test_a_text_knows_what_was_lost() -> None:
    text = Tokenized("one two three", ((0, 0), (0, 3), (4, 7), (0, 0)), kept=7)
    assert text.lost == "three"
    assert text.holds((4, 7))
    assert not text.holds((8, 13))
    assert text.positions((4, 7)) == (2,)


@given(
    st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=4), min_size=1, max_size=6),
    st.text(string.ascii_lowercase + " ", max_size=9),
)
def test_a_replaced_text_says_where_the_replacements_are(others: list[str], replacement: str) -> None:
    text = " xlo ".join(other.upper() for other in others)
    replaced, places = replace_spans(text, word_spans(text, "xlo"), replacement)
    assert replaced == text.replace("xlo", replacement)
    assert [replaced[first:end] for first, end in places] == [replacement] * (len(others) - 1)
