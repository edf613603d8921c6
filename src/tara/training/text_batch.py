"""The text of one training call of the U-Net: every row's keys and values with its own concept's deltas."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tara.core.losses import token_alignment_loss
from tara.families.base import TextEncoding
from tara.families.processors import TextConditioning
from tara.training.data.encoded import Caption, KeysValues, TextCache
from tara.training.weights import ConceptWeights, Factors, per_row


@dataclass(frozen=True, kw_only=True, eq=False)
class TextRows:
    """The text side of a call, without deltas, and where the deltas go."""

    captions: tuple[Caption, ...]
    encoding: TextEncoding
    kv: Mapping[str, KeysValues]
    """Frozen keys and values, (rows, tokens, inner) each, by layer."""
    inputs: Float[Tensor, "concepts positions d"]
    """The embeddings that each concept's deltas act on."""
    places: Int[Tensor, " concepts*positions"] | None
    """Where among all (row, token) pairs these embeddings are; None when they are all of them, in order."""

    def with_deltas(self, frozen: Float[Tensor, "rows tokens inner"], factors: Factors, scale: float) -> Tensor:
        """Keys or values of one layer with every concept's delta in its own rows: one product for all concepts."""
        a, b = factors
        delta = scale * torch.bmm(torch.bmm(self.inputs, a.mT), b.mT)
        if self.places is None:
            return frozen + delta.view_as(frozen)
        return frozen.flatten(0, 1).index_add(0, self.places, delta.flatten(0, 1)).view_as(frozen)


def text_rows(captions: Sequence[Caption], texts: TextCache, *, concepts: int, tfm: bool) -> TextRows:
    """Put the rows' cached texts side by side.

    Args:
        captions: of all rows, the same number for every concept.
        texts: where their keys and values are.
        concepts: how many concepts share the rows.
        tfm: token focus mask: deltas act on the rare word's tokens only, otherwise on every token.
    """
    encoding = TextEncoding.join([caption.encoding for caption in captions])
    kv = [texts.kv(caption.text) for caption in captions]
    stacked = {
        layer: (torch.cat([row[layer][0] for row in kv]), torch.cat([row[layer][1] for row in kv])) for layer in kv[0]
    }
    inputs, places = encoding.embeddings.unflatten(0, (concepts, -1)).flatten(1, 2), None
    if tfm:
        inputs, places = _focused(captions, encoding.embeddings, concepts)
    return TextRows(captions=tuple(captions), encoding=encoding, kv=stacked, inputs=inputs, places=places)


def _focused(
    captions: Sequence[Caption], embeddings: Float[Tensor, "rows tokens d"], concepts: int
) -> tuple[Float[Tensor, "concepts positions d"], Int[Tensor, " places"]]:
    """The rare words' embeddings, padded with zeros to the same number in every concept, and their places."""
    tokens, per_concept = embeddings.shape[1], len(captions) // concepts
    places = [
        [
            row * tokens + position
            for row in range(concept * per_concept, (concept + 1) * per_concept)
            for position in captions[row].rare
        ]
        for concept in range(concepts)
    ]
    longest = max(map(len, places))
    # padding: zeros are added to the concept's own first token, so they change nothing, and nobody else's rows
    padded = [own + [concept * per_concept * tokens] * (longest - len(own)) for concept, own in enumerate(places)]
    counted = [[1.0] * len(own) + [0.0] * (longest - len(own)) for own in places]
    index = torch.tensor(padded, device=embeddings.device)
    inputs = embeddings.flatten(0, 1)[index] * embeddings.new_tensor(counted)[:, :, None]
    return inputs, index.flatten()


def conditioning(text: TextRows, weights: ConceptWeights, dtype: torch.dtype) -> TextConditioning:
    """Each row's keys and values with its concept's delta; deltas of other layers go along by row."""
    factors, scale = weights.factors(dtype), weights.scale
    kv = {
        layer: (
            text.with_deltas(keys, factors.pop(f"{layer}.to_k"), scale),
            text.with_deltas(values, factors.pop(f"{layer}.to_v"), scale),
        )
        for layer, (keys, values) in text.kv.items()
    }
    rows_per_concept = len(text.captions) // weights.concepts
    others = {path: per_row(pair, rows_per_concept, scale) for path, pair in factors.items()}
    return TextConditioning(kv, others or None)


def alignment(
    text: TextRows, learned: TextConditioning, *, concepts: int, photos: int, form: Literal["l1", "squared"]
) -> Float[Tensor, " concepts"]:
    """The token alignment loss of each concept: a function of a few key rows, without a U-Net call.

    Args:
        text: the rows without deltas.
        learned: the same rows with them.
        concepts: how many concepts share the rows.
        photos: how many rows of each concept, the first ones, show its photos.
        form: see :func:`tara.core.losses.token_alignment_loss`.
    """
    losses: list[Tensor] = []
    per_concept = len(text.captions) // concepts
    for first in range(0, len(text.captions), per_concept):
        rows = range(first, first + photos)
        # a caption that all photos share is looked at once
        shared = all(text.captions[row] is text.captions[first] for row in rows)
        pairs = [(layer, row) for layer in text.kv for row in (rows[:1] if shared else rows)]
        rare = [_precise(learned.kv[layer][0][row, _stretch(text.captions[row].first_rare)]) for layer, row in pairs]
        kind = [_precise(text.kv[layer][0][row, _stretch(text.captions[row].kind)]) for layer, row in pairs]
        losses.append(token_alignment_loss(rare, kind, form))
    return torch.stack(losses)


def _precise(keys: Tensor) -> Tensor:
    # in fp16 the enlarged loss's gradient would not fit, and bf16 rounds small distances away
    return keys.to(torch.promote_types(keys.dtype, torch.float32))


def _stretch(positions: Sequence[int]) -> slice:
    """A word's tokens follow one another."""
    return slice(min(positions), max(positions) + 1)
