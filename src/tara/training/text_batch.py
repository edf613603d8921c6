"""The text of one training batch: keys and values of every row, with the deltas of its concept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tara.core.method import AlignmentSubwords, add_masked_delta, token_alignment_loss
from tara.families.base import Base
from tara.families.processors import KeysValues, TextConditioning
from tara.families.text import TextEncoding
from tara.training.data.encoded import Caption, TextCache
from tara.training.weights import ConceptWeights, per_row


@dataclass(frozen=True, kw_only=True, eq=False)
class TextBatch:
    """The text side of a call without deltas, and where the deltas go."""

    captions: tuple[Caption, ...]
    encoding: TextEncoding
    kv: Mapping[str, KeysValues]
    """Frozen keys and values, (rows, tokens, inner) each, by layer."""
    inputs: Float[Tensor, "concepts positions d"]
    """The embeddings that each concept's deltas read."""
    positions: Int[Tensor, " concepts*positions"] | None
    """Where the token mask is 1, among all (row, token) pairs; None for everywhere, in order."""


def text_batch(captions: Sequence[Caption], texts: TextCache, *, concepts: int, token_mask: bool) -> TextBatch:
    """Put the rows' cached texts side by side.

    Args:
        captions: of all rows, the same number for every concept.
        texts: where their keys and values are.
        concepts: how many concepts share the rows.
        token_mask: token focus masking: deltas act on the rare word's tokens only, otherwise on every token.
    """
    encoding = TextEncoding.join([caption.encoding for caption in captions])
    kv = [texts.kv(caption) for caption in captions]
    stacked = {
        layer: (torch.cat([row[layer][0] for row in kv]), torch.cat([row[layer][1] for row in kv])) for layer in kv[0]
    }
    inputs, positions = encoding.embeddings.unflatten(0, (concepts, -1)).flatten(1, 2), None
    if token_mask:
        inputs, positions = _masked(captions, encoding.embeddings, concepts)
    return TextBatch(captions=tuple(captions), encoding=encoding, kv=stacked, inputs=inputs, positions=positions)


def _masked(
    captions: Sequence[Caption], embeddings: Float[Tensor, "rows tokens d"], concepts: int
) -> tuple[Float[Tensor, "concepts positions d"], Int[Tensor, " all"]]:
    """The rare words' embeddings, padded with zeros to the same number in every concept, and their positions."""
    tokens, per_concept = embeddings.shape[1], len(captions) // concepts
    positions: list[list[int]] = [[] for _ in range(concepts)]
    for row, caption in enumerate(captions):
        positions[row // per_concept] += [row * tokens + position for position in caption.rare_positions]
    longest = max(map(len, positions))
    # padding: zeros are added to the concept's own first token, so they change nothing, and nobody else's rows
    padded = [own + [concept * per_concept * tokens] * (longest - len(own)) for concept, own in enumerate(positions)]
    counted = [[1.0] * len(own) + [0.0] * (longest - len(own)) for own in positions]
    index = torch.tensor(padded, device=embeddings.device)
    inputs = embeddings.flatten(0, 1)[index] * embeddings.new_tensor(counted)[:, :, None]
    return inputs, index.flatten()


def text_conditioning(base: Base, text: TextBatch, weights: ConceptWeights) -> TextConditioning:
    """Each row's keys and values with its concept's delta; deltas of other layers go along by row."""
    deltas = weights.deltas(base.dtype)
    kv: dict[str, KeysValues] = {}
    for layer, frozen in text.kv.items():
        keys, values = (
            add_masked_delta(part, deltas.pop(f"{layer}.{name}"), text.inputs, text.positions)
            for name, part in zip(base.kv_names, frozen, strict=True)
        )
        kv[layer] = keys, values
    rows_per_concept = len(text.captions) // weights.concepts
    return TextConditioning(kv, {path: per_row(delta, rows_per_concept) for path, delta in deltas.items()} or None)


def alignment(
    text: TextBatch,
    learned: TextConditioning,
    *,
    concepts: int,
    photos: int,
    form: Literal["l1", "squared"],
    subwords: AlignmentSubwords,
) -> Float[Tensor, " concepts"]:
    """The token alignment loss of each concept, over the first ``photos`` of its rows: a function of a few keys.

    ``learned`` are the rows of ``text`` with their deltas; for ``form`` and ``subwords`` see
    `tara.core.method.token_alignment_loss`.
    """
    losses: list[Tensor] = []
    per_concept = len(text.captions) // concepts
    for first in range(0, len(text.captions), per_concept):
        rows = range(first, first + photos)
        # a caption that all photos share counts once
        shared = all(text.captions[row] is text.captions[first] for row in rows)
        pairs = [(layer, row) for layer in text.kv for row in (rows[:1] if shared else rows)]
        rare = [_keys(learned.kv[layer][0], row, text.captions[row].first_rare_positions) for layer, row in pairs]
        of_class = [_keys(text.kv[layer][0], row, text.captions[row].class_positions) for layer, row in pairs]
        losses.append(token_alignment_loss(rare, of_class, form, subwords))
    return torch.stack(losses)


def _keys(keys: Float[Tensor, "rows tokens inner"], row: int, positions: Sequence[int]) -> Tensor:
    """A word's keys, whose tokens follow one another, in float32 or better."""
    word = keys[row, min(positions) : max(positions) + 1]
    # in fp16 the enlarged loss's gradient would not fit, and bf16 rounds small distances away
    return word.to(torch.promote_types(word.dtype, torch.float32))
