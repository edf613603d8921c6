"""Tokenizes and encodes prompts as diffusers' pipelines with CLIP-like tokenizers do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tara.core.tokens import Span, Tokenized
from tara.errors import TaraError

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
SMALLEST_VOCABULARY = 10_000  # in a smaller vocabulary, token numbers do not separate common from rare words
COMMON = 0.9  # part of the vocabulary; in CLIP, zebra is at 0.46, koala at 0.74, invented words such as sks above 0.97


@dataclass(frozen=True, eq=False)
class TextEncoding:
    """Encoded texts: ``embeddings`` (rows, tokens, d), ``pooled`` (rows, d) or None, and the tokens of each row."""

    embeddings: Tensor
    pooled: Tensor | None
    tokenized: tuple[Tokenized, ...]

    @property
    def rows(self) -> int:
        return self.embeddings.shape[0]

    @property
    def nbytes(self) -> int:
        """Memory of the embeddings, in bytes."""
        return self.embeddings.nbytes + (0 if self.pooled is None else self.pooled.nbytes)

    def take(self, rows: Sequence[int]) -> "TextEncoding":
        """The given rows, in that order. Rows may repeat."""
        index = torch.tensor(list(rows), device=self.embeddings.device)
        pooled = None if self.pooled is None else self.pooled[index]
        return TextEncoding(self.embeddings[index], pooled, tuple(self.tokenized[row] for row in rows))

    @staticmethod
    def join(parts: Sequence["TextEncoding"]) -> "TextEncoding":
        """Concatenate the rows of all parts."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return TextEncoding(
            torch.cat([part.embeddings for part in parts]),
            torch.cat(pooled) if pooled else None,
            tuple(tokens for part in parts for tokens in part.tokenized),
        )


def tokenize(pipe: Any, text: str) -> Tokenized:
    """Tokenize a text, with character offsets. Pads or truncates to the text encoder's length (77 tokens for CLIP).

    Raises:
        TaraError: when a pipeline's tokenizers split the text differently.
    """
    tokenizers = [part for name in ("tokenizer", "tokenizer_2") if (part := getattr(pipe, name, None)) is not None]
    tokenized = [_tokenize(pipe, tokenizer, text) for tokenizer in tokenizers]
    if any(other != tokenized[0] for other in tokenized):
        raise TaraError(f"The base's tokenizers split '{text}' differently. Use a base whose tokenizers agree.")
    return tokenized[0]


def _tokenize(pipe: Any, tokenizer: Any, text: str) -> Tokenized:
    text = with_inversions(pipe, tokenizer, text)
    encoded = tokenizer(
        text,
        return_offsets_mapping=True,
        truncation=True,
        max_length=int(tokenizer.model_max_length),
        padding="max_length",
        return_overflowing_tokens=True,
    )
    pieces: Sequence[Sequence[Span]] = encoded["offset_mapping"]  # several entries if the text is too long
    offsets: tuple[Span, ...] = tuple((int(first), int(end)) for first, end in pieces[0])
    characters_read = len(text) if len(pieces) == 1 else max(end for _, end in offsets)
    return Tokenized(text, offsets, characters_read)


def encode_with_pipeline(pipe: Any, text: str, clip_skip: int | None, device: torch.device) -> TextEncoding:
    """Encode one text with the pipeline's ``encode_prompt``."""
    encoded: Sequence[Tensor | None] = pipe.encode_prompt(
        prompt=text, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False, clip_skip=clip_skip
    )  # (conditional, unconditional) and, with a second encoder, their pooled vectors
    embeddings, pooled = encoded[0], encoded[2] if len(encoded) > 2 else None
    assert embeddings is not None
    return TextEncoding(embeddings, pooled, (tokenize(pipe, text),))


def with_inversions(pipe: Any, tokenizer: Any, text: str) -> str:
    """Replace the words of loaded textual inversions by their tokens. One word may have several tokens."""
    # without textual inversions, maybe_convert_prompt would only warn about long texts
    if set(tokenizer.added_tokens_encoder) <= set(tokenizer.all_special_tokens):
        return text
    return pipe.maybe_convert_prompt(text, tokenizer) if hasattr(pipe, "maybe_convert_prompt") else text


def is_common_word(pipe: Any, word: str) -> bool:
    """Whether a word is so common that the base knows a meaning of it.

    Byte-pair tokenizers number tokens in the order of their frequency in the training text. A word is common if each of
    its parts is one token with a low number.
    """
    tokenizer = pipe.tokenizer
    size = len(tokenizer)
    tokens = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in word.split()]
    return size >= SMALLEST_VOCABULARY and all(len(ids) == 1 and ids[0] < COMMON * size for ids in tokens)
