"""The syntax of prompts and their chunks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tara.families.prompt_syntax import apply_token_weights, chunk_spans, parse_prompt

WORDS = st.lists(st.text("abcdefgh", min_size=1, max_size=9), min_size=1, max_size=60)


def weights_of(text: str) -> dict[str, float]:
    """The weight of each letter; all letters of the tests' prompts differ."""
    prompt = parse_prompt(text)
    return {letter: weight for letter, weight in zip(prompt.text, prompt.weights, strict=True) if letter.isalpha()}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("a (xlo dog:1.3) here", "a xlo dog here"),
        ("a (sitting) dog", "a (sitting) dog"),
        (r"a \(xlo:1.3\) dog", "a (xlo:1.3) dog"),
        ("a dog :) (or not", "a dog :) (or not"),
        ("(dog: 1.3 )", "dog"),
        ("(a dog:12:30)", "a dog:12"),
        (r"a\b", r"a\b"),
        ("", ""),
    ],
)
def test_the_text_of_a_prompt_is_what_is_left_without_its_syntax(written: str, read: str):
    assert parse_prompt(written).text == read


def test_weights_of_nested_parentheses_multiply():
    found = weights_of("u (v (w:1.5) x:2) y (z)")
    assert found == {"u": 1, "v": 2, "w": 3, "x": 2, "y": 1, "z": 1}


def test_a_break_begins_a_new_chunk_and_is_no_word():
    prompt = parse_prompt("a (dog BREAK on:2) a beach BREAK")
    assert prompt.text == "a dog on a beach"
    assert prompt.breaks == (6,)
    assert [prompt.text[first:end] for first, end in chunk_spans(prompt, len)] == ["a dog ", "on a beach"]
    assert parse_prompt("BREAKING news").breaks == ()


@given(words=WORDS, room=st.integers(1, 40))
def test_chunks_cover_the_prompt_in_order_and_each_fits(words: list[str], room: int):
    prompt = parse_prompt(" ".join(words))
    spans = list(chunk_spans(prompt, lambda text: min(room, len(text))))
    assert "".join(prompt.text[first:end] for first, end in spans) == prompt.text
    assert all(len(prompt.text[first:end].rstrip()) <= room for first, end in spans)
    longest = max(len(word) for word in words)
    if room > longest:  # then no word is cut
        assert " ".join(prompt.text[first:end].strip() for first, end in spans).split() == words


def test_a_full_chunk_ends_at_a_comma_near_its_end():
    prompt = parse_prompt("a dog on a beach, with a hat")
    assert next(chunk_spans(prompt, lambda text: min(22, len(text)))) == (0, len("a dog on a beach,"))
    assert next(chunk_spans(prompt, lambda text: min(26, len(text)))) == (0, len("a dog on a beach, with a "))


def test_a_weight_scales_its_tokens_and_keeps_the_mean():
    embeddings = torch.rand(1, 3, 4, dtype=torch.float64) + 1
    found = apply_token_weights(embeddings, torch.tensor([1.0, 2.0, 1.0]))
    torch.testing.assert_close(found.mean(), embeddings.mean())
    torch.testing.assert_close(found[:, 1] / found[:, 0], 2 * embeddings[:, 1] / embeddings[:, 0])


@given(text=st.text("(): .2\\aBREAK", max_size=40))
def test_any_text_is_a_prompt(text: str):
    prompt = parse_prompt(text)
    assert len(prompt.text) == len(prompt.weights)
    spans = list(chunk_spans(prompt, lambda part: min(5, len(part))))
    assert "".join(prompt.text[first:end] for first, end in spans) == prompt.text
