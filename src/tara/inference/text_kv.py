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

CACHE_BYTES = 64 * 2**20  # one encoded text has about 0.2 MB (SD 1.5) to 0.6 MB (SDXL)


class CachedTextEncoder:
    """Encodes texts on one base with the text-encoder deltas of adapters, and caches the encoded texts.

    Args:
        base: the base. Its weights are changed while a text is encoded.
        cache_bytes: memory for encoded texts, in bytes. The least recently used are dropped first.
    """

    def __init__(self, base: Base, cache_bytes: int = CACHE_BYTES) -> None:
        self.base = base
        self._encoded = ByteBoundedCache[Hashable, TextEncoding](cache_bytes, lambda encoding: encoding.nbytes)

    def encode(
        self, text: str, clip_skip: int | None, adapters: Iterable[ActiveAdapter], chunks: int = 1
    ) -> TextEncoding:
        """Encode a prompt to one row, see `encode_prompt`."""
        key = text, clip_skip, chunks
        return self._cached(key, adapters, lambda: encode_prompt(self.base, text, clip_skip, chunks))

    def encode_caption(self, text: str, adapters: Iterable[ActiveAdapter]) -> TextEncoding:
        """Encode one row as training does: without prompt weights, and truncated to what the text encoder reads."""
        return self._cached(("caption", text), adapters, lambda: self.base.encode([text]))

    def encode_negative(self, text: str | None, adapters: Iterable[ActiveAdapter], chunks: int = 1) -> TextEncoding:
        """Encode one negative row (unconditional if ``text`` is None), see `encode_negative_prompt`."""
        return self._cached((text, chunks), adapters, lambda: encode_negative_prompt(self.base, text, chunks))

    def _cached(
        self, key: Hashable, adapters: Iterable[ActiveAdapter], encode: Callable[[], TextEncoding]
    ) -> TextEncoding:
        own = [active for active in adapters if active.adapter.text_layers and active.weight]
        # the adapters themselves, not their ids: Python reuses the id of a deleted object
        full_key = key, tuple((active.adapter, active.weight) for active in own)
        if full_key not in self._encoded:
            with fused_text(self.base, own):
                self._encoded[full_key] = encode()
        return self._encoded[full_key]


@dataclass(frozen=True, eq=False)
class MaskedInput:
    """Where one adapter's mask is 1 in a batch, and the embeddings that its deltas read there.

    ``positions`` (n,) are flat indices (row * tokens + token). ``inputs`` is (n, d). ``own_embeddings`` is (n, d) for
    an adapter with text-encoder deltas: the base's keys and values at these positions are computed from them before the
    delta is added. None: they are computed from the embeddings of the batch.
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
    projections, plus each adapter's delta at its rare word's tokens. For an adapter with text-encoder deltas, the
    embeddings of its rare word are taken from the prompt encoded with these deltas. All other embeddings X are the
    base's.

    Args:
        encoder: the text encoder of the base, for instance prompts, and prompts of adapters with text-encoder deltas.
        encoding: (rows, tokens, d), in the order of the network's batch.
        bindings: for each row, the tokens of its adapters. Empty for rows without adapters (unconditional, negative).
        context: where X_c is taken from, see `tara.adapters.card.Context`. None: as each adapter's card says.
        clip_skip: the clip_skip with which ``encoding`` was made. Instance prompts are always encoded without it.

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
    # all rows in one product, as in the stock processor, so that rows without adapters equal the base's bit by bit
    projected = list(base.project(layer, embeddings))
    for masked_input in masked:
        if masked_input.own_embeddings is not None:
            for whole, part in zip(projected, base.project(layer, masked_input.own_embeddings), strict=True):
                whole.flatten(0, 1)[masked_input.positions] = part
    for number, name in enumerate(base.family.kv_names):
        for masked_input in masked:
            low_rank = masked_input.active.adapter.text_kv_deltas.get(f"{layer}.{name}")
            if low_rank is not None:
                precise = torch.promote_types(masked_input.inputs.dtype, torch.float32)
                delta = low_rank.to(masked_input.inputs.device, precise)
                # with a concept axis, as in training, because batched products round differently from matrix products
                delta = replace(delta, a=delta.a[None], b=delta.b[None])
                inputs = masked_input.inputs[None].to(precise)
                projected[number] = add_masked_delta(
                    projected[number], delta, inputs, masked_input.positions, masked_input.active.weight
                )
    return projected[0], projected[1]


Entries = Sequence[tuple[int, Binding]]
"""For one adapter: (row, its tokens in this row) for each row of the batch on which it acts."""


@dataclass(frozen=True, eq=False)
class _MaskedInputs:
    """Makes the `MaskedInput` of each adapter. The arguments are those of `compute_text_kv`."""

    encoder: CachedTextEncoder
    encoding: TextEncoding
    context: Context | None
    clip_skip: int | None

    def of(self, bindings: Sequence[Sequence[Binding]]) -> list[MaskedInput]:
        """One entry for each adapter whose weight is not 0, in a fixed order of summation."""
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
        # text-encoder deltas of plain LoRAs were applied when the whole row was encoded
        own = None if unmasked or not active.adapter.text_layers else self._encoded(entries).to(x)
        context: Context = "prompt" if unmasked else self.context or active.adapter.card.context
        if context == "prompt":
            return MaskedInput(active, positions, x[rows, tokens] if own is None else own, own_embeddings=own)
        phrase = self._in_phrase(active).to(x)
        lengths = [len(word) for _, binding in entries for word in binding.occurrences]
        inputs = phrase[[piece for length in lengths for piece in _match(length, len(phrase))]]
        return MaskedInput(active, positions, inputs, own_embeddings=own)

    def _encoded(self, entries: Entries) -> Tensor:
        """Embeddings (n, d) of the adapter's rare word in its rows, encoded with its text-encoder deltas."""
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
    """For each of ``wanted`` tokens in the prompt, the index of the token (of ``given``) in the instance prompt.

    The numbers of tokens differ if the user chose another rare word. They are aligned at the last token, because there
    a causal text encoder has read the whole word. If tokens are missing, the first one is repeated.
    """
    return [max(0, given - wanted + position) for position in range(wanted)]
