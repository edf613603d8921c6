"""Encodes prompts and computes the text's keys and values with adapters, once for all denoising steps."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tara.adapters.card import Context
from tara.core.method import add_masked_delta
from tara.core.tokens import word_spans
from tara.errors import TaraError
from tara.families.base import Base
from tara.families.processors import TextConditioning
from tara.families.prompt_encoding import encode_negative_prompt, encode_prompt
from tara.families.text import TextEncoding
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.binding import Binding
from tara.inference.capacity import ByteBoundedCache
from tara.inference.fusing import fused_text

CACHE_BYTES = 64 * 2**20  # a text is about 0.2 MB (SD 1.5) to 0.6 MB (SDXL)


class CachedTextEncoder:
    """Encodes texts on one base, with the text-encoder deltas of adapters; what was encoded last is kept.

    Args:
        base: the base, whose weights are changed while a text is encoded.
        cache_bytes: memory for encoded texts; the least recently used go first.
    """

    def __init__(self, base: Base, cache_bytes: int = CACHE_BYTES) -> None:
        self.base = base
        self._encoded = ByteBoundedCache[Hashable, TextEncoding](cache_bytes, lambda encoding: encoding.nbytes)

    def encode(
        self, text: str, clip_skip: int | None, adapters: Iterable[ActiveAdapter], chunks: int = 1
    ) -> TextEncoding:
        """One row, see `encode_prompt`."""
        key = text, clip_skip, chunks
        return self._cached(key, adapters, lambda: encode_prompt(self.base, text, clip_skip, chunks))

    def encode_caption(self, text: str, adapters: Iterable[ActiveAdapter]) -> TextEncoding:
        """One row as training reads it: no weights, and what does not fit is cut off."""
        return self._cached(("caption", text), adapters, lambda: self.base.encode([text]))

    def encode_negative(self, text: str | None, adapters: Iterable[ActiveAdapter], chunks: int = 1) -> TextEncoding:
        """One unconditional or negative row, see `encode_negative_prompt`."""
        return self._cached((text, chunks), adapters, lambda: encode_negative_prompt(self.base, text, chunks))

    def _cached(
        self, key: Hashable, adapters: Iterable[ActiveAdapter], encode: Callable[[], TextEncoding]
    ) -> TextEncoding:
        own = [active for active in adapters if active.adapter.text_layers and active.weight]
        # adapters themselves, not their ids: an id may be given to another one as soon as the first is gone
        full_key = key, tuple((active.adapter, active.weight) for active in own)
        if full_key not in self._encoded:
            with fused_text(self.base, own):
                self._encoded[full_key] = encode()
        return self._encoded[full_key]


@dataclass(frozen=True, eq=False)
class MaskedInput:
    """Where one adapter's mask is 1 in a batch, and the embeddings that its deltas read there.

    ``positions`` (n,) index all rows * tokens, ``inputs`` is (n, d). ``own_embeddings`` (n, d), if given,
    replace the embeddings there: the base's keys and values are computed from them before the delta is added.
    """

    active: ActiveAdapter
    positions: Tensor
    inputs: Tensor
    own_embeddings: Tensor | None


def compute_text_kv(
    encoder: CachedTextEncoder,
    encoding: TextEncoding,
    bindings: Sequence[Sequence[Binding]],
    context: Context | None = None,
    clip_skip: int | None = None,
) -> TextConditioning:
    """Keys and values of every text layer for a batch of prompts.

    ``K = X W_K^T + sum_c M_c (w_c s_c X_c A_c^T B_c^T)``, the same for V (TARA, arXiv 2508.08812): the base's current
    projections, plus each adapter's delta at its rare word's tokens. An adapter with text-encoder deltas takes the
    rows of its own word from the prompt encoded with these deltas; all other rows of X stay the base's.

    Args:
        encoder: of the base; encodes prompts and instance prompts for adapters with text-encoder deltas.
        encoding: (rows, tokens, d), in the order of the network's batch.
        bindings: for each row its adapters' tokens; empty for rows that stay the base's (unconditional, negative).
        context: where X_c is taken from, see `tara.adapters.card.Context`; each card's own choice if None.
        clip_skip: how the prompts of ``encoding`` were encoded; instance prompts never skip.

    Raises:
        TaraError: when a card's instance prompt lacks its rare word.
    """
    assert len(bindings) == encoding.rows, "one list of bindings per row"
    base = encoder.base
    masked = _MaskedInputs(encoder, encoding, context, clip_skip).of(bindings)
    return TextConditioning(
        {layer: _keys_values(base, layer, encoding.embeddings, masked) for layer in base.text_layers}
    )


@torch.no_grad()
def _keys_values(base: Base, layer: str, embeddings: Tensor, masked: Sequence[MaskedInput]) -> tuple[Tensor, Tensor]:
    # all rows in one product, as the stock processor does it: rows without adapters then equal the base's bit by bit
    projected = list(base.project(layer, embeddings))
    for one in masked:
        if one.own_embeddings is not None:
            for whole, part in zip(projected, base.project(layer, one.own_embeddings), strict=True):
                whole.flatten(0, 1)[one.positions] = part
    for number, name in enumerate(base.family.kv_names):
        for one in masked:
            low_rank = one.active.adapter.text_kv_deltas.get(f"{layer}.{name}")
            if low_rank is not None:
                precise = torch.promote_types(one.inputs.dtype, torch.float32)
                delta = low_rank.to(one.inputs.device, precise)
                # with a concept axis, as in training: products of a batch round differently from those of a matrix
                delta = replace(delta, a=delta.a[None], b=delta.b[None])
                inputs = one.inputs[None].to(precise)
                projected[number] = add_masked_delta(projected[number], delta, inputs, one.positions, one.active.weight)
    return projected[0], projected[1]


Entries = Sequence[tuple[int, Binding]]
"""The rows of a batch that one adapter acts on, with its tokens there."""


@dataclass(frozen=True, eq=False)
class _MaskedInputs:
    """Where adapters read the embeddings of their words; arguments as of `compute_text_kv`."""

    encoder: CachedTextEncoder
    encoding: TextEncoding
    context: Context | None
    clip_skip: int | None

    def of(self, bindings: Sequence[Sequence[Binding]]) -> list[MaskedInput]:
        """One entry for each adapter with a weight, in a fixed order of summation."""
        grouped: dict[int, list[tuple[int, Binding]]] = {}
        for row, of_row in enumerate(bindings):
            for binding in of_row:
                if binding.active.weight:
                    grouped.setdefault(id(binding.active), []).append((row, binding))
        return [self._masked(entries) for entries in sorted(grouped.values(), key=lambda some: some[0][1].active.order)]

    def _masked(self, entries: Entries) -> MaskedInput:
        active, unmasked = entries[0][1].active, entries[0][1].unmasked
        x = self.encoding.embeddings
        at = [(row, position) for row, binding in entries for word in binding.occurrences for position in word]
        rows, tokens = torch.tensor(at, dtype=torch.long, device=x.device).view(-1, 2).unbind(1)
        positions = rows * x.shape[1] + tokens
        # a plain LoRA's encoder has made all of the encoding
        own = None if unmasked or not active.adapter.text_layers else self._encoded(entries).to(x)
        context: Context = "prompt" if unmasked else self.context or active.adapter.card.context
        if context == "prompt":
            return MaskedInput(active, positions, x[rows, tokens] if own is None else own, own_embeddings=own)
        phrase = self._in_phrase(active).to(x)
        lengths = [len(word) for _, binding in entries for word in binding.occurrences]
        inputs = phrase[[piece for length in lengths for piece in _match(length, len(phrase))]]
        return MaskedInput(active, positions, inputs, own_embeddings=own)

    def _encoded(self, entries: Entries) -> Tensor:
        """Embeddings (n, d) of the adapter's word in its rows, read with its text-encoder deltas."""
        parts: list[Tensor] = []
        for row, binding in entries:
            prompt = self.encoding.tokenized[row]
            text = prompt.text if prompt.written is None else prompt.written
            embeddings = self.encoder.encode(text, self.clip_skip, (binding.active,)).embeddings[0]
            parts.append(embeddings[[position for word in binding.occurrences for position in word]])
        return torch.cat(parts)

    def _in_phrase(self, active: ActiveAdapter) -> Tensor:
        """Embeddings (pieces, d) of the rare word in the adapter's instance prompt."""
        card = active.adapter.card
        encoding = self.encoder.encode_caption(card.phrase, (active,))
        tokenized = encoding.tokenized[0]
        spans = [span for span in word_spans(tokenized.text, card.rare_word) if tokenized.holds(span)]
        if not spans:
            raise TaraError(
                f"The instance prompt '{card.phrase}' of {active.name} lacks its rare word '{card.rare_word}'. Use "
                "the context 'prompt', or train the adapter again."
            )
        return encoding.embeddings[0, list(tokenized.positions(spans[0]))]


def _match(wanted: int, given: int) -> list[int]:
    """Which of the phrase's ``given`` pieces stands at each of a rebound word's ``wanted`` tokens.

    Aligned at the end, where a causal text encoder has read the whole word; the first piece is repeated.
    """
    return [max(0, given - wanted + position) for position in range(wanted)]
