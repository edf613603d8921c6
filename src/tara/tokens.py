"""Where a word sits in a tokenized prompt."""

import re
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

Span = tuple[int, int]
"""First character and the one after the last, as in a slice."""


def word_spans(text: str, word: str) -> list[Span]:
    """Every place of a word in a text, by characters.

    Whole words only (``lo`` is not in ``xlo``, but ``xlo's`` counts), whatever the case; the parts of a word such as
    ``toy dog`` may be apart by any white space.
    """
    parts = [re.escape(part) for part in word.split()]
    if not parts:
        return []
    pattern = rf"(?<!\w){r'\s+'.join(parts)}(?!\w)"
    return [match.span() for match in re.finditer(pattern, text, flags=re.IGNORECASE)]


def find_word(offsets: Sequence[Span], span: Span) -> list[int]:
    """Positions of the tokens that hold characters of a span.

    Args:
        offsets: the characters of each token, as tokenizers report them; special tokens are empty.
        span: where the word is, from :func:`word_spans`.
    """
    first, end = span
    return [
        position
        for position, (start, stop) in enumerate(offsets)
        if start < stop and start < end and stop > first
    ]


def token_mask(tokens: int, positions: Iterable[int]) -> Bool[Tensor, " tokens"]:
    """True at the given positions, False elsewhere."""
    mask = torch.zeros(tokens, dtype=torch.bool)
    mask[list(positions)] = True
    return mask


def is_cut_off(span: Span, kept_characters: int) -> bool:
    """Whether a part of the span lies behind the text's characters that the tokenizer kept."""
    return span[1] > kept_characters
