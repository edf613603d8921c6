"""Encodes prompts of any length and with weights, in chunks that fit a family's text encoder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch

from tara.core.tokens import Span, Tokenized
from tara.errors import TaraError
from tara.families.base import Base
from tara.families.prompt_syntax import Prompt, apply_token_weights, chunk_spans, parse_prompt
from tara.families.text import TextEncoding

MOST_CHUNKS = 16  # each adds a prompt's worth of keys and values to every layer


@dataclass(frozen=True, eq=False)
class Chunks:
    """A prompt split into chunks, which the text encoder reads separately."""

    prompt: Prompt
    spans: tuple[Span, ...]
    tokenized: Tokenized
    """All tokens of all chunks, by characters of ``prompt.text``."""


def tokenize_prompt(base: Base, text: str) -> Chunks:
    """A prompt's chunks and tokens; see `tara.families.prompt_syntax` for its syntax.

    Raises:
        TaraError: when the prompt has more than `MOST_CHUNKS` chunks, or weights or several chunks and a textual
            inversion of several tokens.
    """
    prompt = parse_prompt(text)
    spans = tuple(islice(chunk_spans(prompt, lambda part: base.tokenize(part).characters_read), MOST_CHUNKS + 1))
    if len(spans) > MOST_CHUNKS:
        raise TaraError(f"A prompt of more than {MOST_CHUNKS} chunks is too long. Shorten it, or leave out some BREAK.")
    parts = [base.tokenize(prompt.text[first:end]) for first, end in spans]
    if len(parts) == 1 and not prompt.is_weighted:
        return Chunks(prompt, spans, replace(parts[0], written=text))
    if any(part.text != prompt.text[first:end] for part, (first, end) in zip(parts, spans, strict=True)):
        raise TaraError(
            "A textual inversion of several tokens stands in a prompt with weights or of several chunks, which tara "
            "cannot encode. Shorten the prompt and leave the weights out."
        )
    offsets = tuple(
        (first + of_part[0], first + of_part[1])
        for part, (first, _) in zip(parts, spans, strict=True)
        for of_part in part.offsets
    )
    return Chunks(prompt, spans, Tokenized(prompt.text, offsets, len(prompt.text), text))


@torch.no_grad()
def encode_prompt(base: Base, text: str, clip_skip: int | None = None, chunks: int = 1) -> TextEncoding:
    """Encode a prompt to one row: each chunk as the stock pipeline encodes a prompt, joined along the tokens.

    The pooled vector is that of the first chunk. A prompt of one chunk without weights is encoded by `Base.encode`.

    Args:
        base: the base.
        text: the prompt, with the syntax of `tara.families.prompt_syntax`.
        clip_skip: as in `Base.encode`.
        chunks: smallest number of chunks. Empty chunks are added at the end.
    """
    read = tokenize_prompt(base, text)
    texts = [read.prompt.text[first:end] for first, end in read.spans]
    parts = base.encode([*texts, *[""] * (chunks - len(texts))], clip_skip)
    embeddings = list(parts.embeddings)
    position = 0
    for number in range(len(texts)):
        tokens = len(embeddings[number])
        weights = _weights(read, position, position + tokens) if read.prompt.is_weighted else ()
        if any(weight != 1 for weight in weights):
            embeddings[number] = apply_token_weights(embeddings[number], torch.tensor(weights))
        position += tokens
    pooled = None if parts.pooled is None else parts.pooled[:1]
    end = len(read.tokenized.text)
    padding = ((end, end),) * (sum(len(part) for part in embeddings) - position)
    tokenized = replace(read.tokenized, offsets=read.tokenized.offsets + padding)
    return TextEncoding(torch.cat(embeddings)[None], pooled, (tokenized,))


def encode_negative_prompt(base: Base, text: str | None, chunks: int = 1) -> TextEncoding:
    """Encode the negative prompt as `encode_prompt` does. None: `Base.encode_negative`, repeated for each chunk."""
    if text is not None:
        return encode_prompt(base, text, None, chunks)
    empty = base.encode_negative(None)
    (tokens,) = empty.tokenized
    tokenized = replace(tokens, offsets=tokens.offsets * chunks)
    return TextEncoding(empty.embeddings.repeat(1, chunks, 1), empty.pooled, (tokenized,))


def _weights(read: Chunks, first: int, end: int) -> Sequence[float]:
    """Weights of the tokens at positions ``first`` to ``end - 1``. A token has the weight of its first character."""
    weights = read.prompt.weights
    return [weights[start] if start < stop else 1.0 for start, stop in read.tokenized.offsets[first:end]]
