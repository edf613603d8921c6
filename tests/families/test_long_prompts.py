"""Prompts of any length and with weights, by the stock pipelines' own encoders."""

from typing import Any

import pytest
import torch

from tara.core.tokens import word_spans
from tara.errors import TaraError
from tara.families.base import Base
from tara.families.prompt_encoding import encode_negative_prompt, encode_prompt, tokenize_prompt
from tara.families.prompt_syntax import apply_token_weights

LONG = "a xlo dog and " + "big " * 100 + "szn cat"


def test_a_prompt_of_one_chunk_is_encoded_as_the_stock_pipeline_does(any_pipe: Any) -> None:
    base = Base(any_pipe)
    found, stock = encode_prompt(base, "a xlo dog (sitting)"), base.encode(["a xlo dog (sitting)"])
    assert torch.equal(found.embeddings, stock.embeddings)
    assert found.tokenized[0].offsets == stock.tokenized[0].offsets


def test_each_chunk_of_a_long_prompt_is_a_prompt_of_its_own_and_empty_ones_fill_up(any_pipe: Any) -> None:
    base = Base(any_pipe)
    read, found = tokenize_prompt(base, LONG), encode_prompt(base, LONG, chunks=4)
    texts = [LONG[first:end] for first, end in read.spans]
    assert len(texts) == 2
    stock = base.encode([*texts, "", ""])
    assert torch.equal(found.embeddings[0], stock.embeddings.flatten(0, 1))
    assert found.pooled is None or torch.equal(found.pooled, stock.pooled[:1])  # pyright: ignore
    (tokens,) = found.tokenized
    assert len(tokens.offsets) == found.embeddings.shape[1] == 4 * 77
    for word, chunk in (("xlo", 0), ("szn", 1)):
        (span,) = word_spans(tokens.text, word)
        assert {position // 77 for position in tokens.positions(span)} == {chunk}
        assert tokens.offsets[tokens.positions(span)[0]][0] == span[0]


def test_a_weight_scales_the_embeddings_of_its_words_and_the_text_has_no_syntax(any_pipe: Any) -> None:
    base = Base(any_pipe)
    plain, found = encode_prompt(base, "a xlo dog here"), encode_prompt(base, "a (xlo dog:1.4) here")
    (tokens,) = found.tokenized
    assert (tokens.text, tokens.written) == ("a xlo dog here", "a (xlo dog:1.4) here")
    weights = torch.ones(77)
    weights[
        [position for word in ("xlo", "dog") for position in tokens.positions(word_spans(tokens.text, word)[0])]
    ] = 1.4
    torch.testing.assert_close(found.embeddings[0], apply_token_weights(plain.embeddings[0], weights))


def test_a_missing_negative_prompt_fills_its_chunks_as_the_base_wants(any_pipe: Any) -> None:
    base = Base(any_pipe)
    one, three = base.encode_negative(None), encode_negative_prompt(base, None, 3)
    assert torch.equal(three.embeddings, one.embeddings.repeat(1, 3, 1))
    assert len(three.tokenized[0].offsets) == 3 * 77


def test_a_weight_beside_an_inversion_of_several_tokens_is_refused(sd_pipe: Any) -> None:
    width = sd_pipe.text_encoder.config.hidden_size
    sd_pipe.load_textual_inversion({"<rex>": torch.rand(2, width)}, token="<rex>")
    base = Base(sd_pipe)
    encode_prompt(base, "a <rex> here")
    with pytest.raises(TaraError, match=r"textual inversion of several tokens .* leave the weights out"):
        encode_prompt(base, "a <rex> (here:1.2)")


@pytest.mark.parametrize("prompt", ["a dog BREAK " * 17, "big " * 5000])
def test_a_prompt_of_too_many_chunks_is_refused(sd_pipe: Any, prompt: str) -> None:
    with pytest.raises(TaraError, match="A prompt of more than 16 chunks is too long"):
        tokenize_prompt(Base(sd_pipe), prompt)
    assert len(tokenize_prompt(Base(sd_pipe), " BREAK ".join(["a dog"] * 16)).spans) == 16
