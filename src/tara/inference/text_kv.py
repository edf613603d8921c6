"""Adapters and prompts to text keys and values."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from tara.adapters.card import Context
from tara.core.lora import LowRank
from tara.core.tokens import Tokenized, replace_spans, word_spans
from tara.errors import TaraError
from tara.families.base import Backbone, TextEncoding
from tara.families.processors import KeysValues, TextConditioning
from tara.families.text_encoders import embedded, text_widths
from tara.inference.binding import AdapterUse, Binding

FILLER = "a"  # a word of one token for each vector of a textual inversion, which takes its place


def check_fits(backbone: Backbone, use: AdapterUse) -> None:
    """Refuse an adapter whose layers are not this base's.

    Raises:
        TaraError: naming both families, or the first layer that differs.
    """
    card = use.adapter.card
    if card.family and card.family != backbone.family.name:  # a card-less file's is not always known
        raise TaraError(
            f"{use.name} was trained on a base of family '{card.family}', this base is '{backbone.family.name}'. "
            f"Use a '{card.family}' base{f' such as {card.base}' if card.base else ''}, or train it again on this one."
        )
    widths = {model: vectors.shape[1] for model, vectors in use.adapter.embeddings.items()}
    if widths and widths != text_widths(backbone.pipe):
        theirs, ours = (", ".join(map(str, of.values())) for of in (widths, text_widths(backbone.pipe)))
        raise TaraError(
            f"{use.name} is an embedding for text encoders of width {theirs}, this base's are {ours} wide. Use the "
            "base that it was made for."
        )
    for path, low_rank in {**use.adapter.layers, **use.adapter.text_layers}.items():
        try:
            sizes = backbone.projection_sizes(path)
        except AttributeError:
            sizes = None
        if sizes != (low_rank.d_in, low_rank.d_out):
            raise TaraError(
                f"{use.name} changes a layer '{path}' of {low_rank.d_in} x {low_rank.d_out}, which this base does not "
                "have. Use the base that it was trained on, or train it again on this one."
            )


class Encode(Protocol):
    """Encodes a text with the text-encoder deltas of some adapters."""

    def __call__(self, text: str, clip_skip: int | None, uses: Sequence[AdapterUse]) -> TextEncoding:
        """One row; ``clip_skip`` as in :meth:`Backbone.encode`."""
        ...


@dataclass(frozen=True, eq=False)
class _Edit:
    """What one adapter changes in a batch: ``rows`` and ``positions`` (n,), and the embeddings (n, d) it reads there.

    Where ``frozen`` (n, d) is given, the base's key and value rows become those of its embeddings before the delta is
    added.
    """

    use: AdapterUse
    rows: Tensor
    positions: Tensor
    embeddings: Tensor
    frozen: Tensor | None


def text_kv(
    backbone: Backbone,
    encoding: TextEncoding,
    bindings: Sequence[Sequence[Binding]],
    context: Context | None = None,
    encode: Encode | None = None,
    clip_skip: int | None = None,
) -> TextConditioning:
    """Keys and values of every cross-attention for a batch of prompts, once for all denoising steps.

    ``K = X W_K^T + sum_c M_c (w_c s_c X_c A_c^T B_c^T)``, the same for V (TARA, arXiv 2508.08812): the U-Net's current
    projections, plus each adapter's delta at its rare word's tokens. An adapter with text-encoder deltas, or a textual
    inversion, reads its own word's rows of X from the prompt as its own text encoder sees it; nobody else's change.

    Args:
        backbone: the base.
        encoding: (rows, tokens, d), in the order of the U-Net's batch.
        bindings: for each row its adapters' tokens; empty for rows that stay the base's (unconditional, negative).
        context: where X_c is taken from, see :data:`tara.adapters.card.Context`; each card's own choice if left out.
        encode: encodes prompts and training phrases for an adapter; :func:`encode_with` if left out.
        clip_skip: how the prompts of ``encoding`` were encoded; training phrases never skip.

    Raises:
        TaraError: when two adapters want the same row as a whole, or a card's phrase lacks its rare word.
    """
    assert len(bindings) == encoding.rows, "one list of bindings per row"
    reader = _Reader(backbone, encoding, context, encode or partial(encode_with, backbone), clip_skip)
    edits = _edits(reader, bindings)
    kv = {
        layer: _edited(layer, backbone.unet.get_submodule(layer), encoding.embeddings, edits)
        for layer in backbone.cross_layers
    }
    return TextConditioning(kv)


def encode_with(backbone: Backbone, text: str, clip_skip: int | None, uses: Sequence[AdapterUse]) -> TextEncoding:
    """One text as the base's encoders see it with the adapters' text-encoder deltas."""
    with fused_text(backbone, uses):
        return backbone.encode([text], clip_skip)


@torch.no_grad()
def _edited(layer: str, attn: Any, embeddings: Tensor, edits: Sequence[_Edit]) -> KeysValues:
    # all rows in one product, as the stock processor does it: rows without adapters then equal the base's bit by bit
    found: list[Tensor] = []
    for name in ("to_k", "to_v"):
        projection = getattr(attn, name)
        where = projection.weight.device  # with offloading, the CPU
        out: Tensor = projection(embeddings.to(where)).to(embeddings.device)
        for edit in edits:
            if edit.frozen is not None:
                out[edit.rows, edit.positions] = projection(edit.frozen.to(where)).to(out.device)
        for edit in edits:
            low_rank = edit.use.adapter.cross_kv.get(f"{layer}.{name}")
            if low_rank is not None:
                delta = edit.use.weight * _delta(low_rank, edit.embeddings)
                out.index_put_((edit.rows, edit.positions), delta.to(out.dtype), accumulate=True)
        found.append(out)
    return found[0], found[1]


def _delta(low_rank: LowRank, x: Tensor) -> Tensor:
    precision = torch.promote_types(x.dtype, torch.float32)
    return low_rank.to(x.device, precision).delta(x.to(precision))


def _edits(reader: "_Reader", bindings: Sequence[Sequence[Binding]]) -> list[_Edit]:
    grouped: dict[int, list[tuple[int, Binding]]] = {}
    for row, of_row in enumerate(bindings):
        for binding in of_row:
            if binding.use.weight == 0:  # not there at all: its training phrase must not replace rows either
                continue
            grouped.setdefault(id(binding.use), []).append((row, binding))
    edits: list[_Edit] = []
    for entries in sorted(grouped.values(), key=lambda entries: entries[0][1].use.order):
        edits.append(reader.edit(entries))
    _check_apart([edit for edit in edits if edit.frozen is not None])
    return edits


Entries = Sequence[tuple[int, Binding]]
"""The rows of a batch that one adapter acts on, with its tokens there."""


@dataclass(frozen=True, eq=False)
class _Reader:
    """Where adapters read the embeddings of their words; arguments as of :func:`text_kv`."""

    backbone: Backbone
    encoding: TextEncoding
    context: Context | None
    encode: Encode
    clip_skip: int | None

    def edit(self, entries: Entries) -> _Edit:
        """What one adapter changes, see :data:`tara.adapters.card.Context`."""
        use, everywhere = entries[0][1].use, entries[0][1].everywhere
        x = self.encoding.embeddings
        places = [(row, position) for row, binding in entries for word in binding.occurrences for position in word]
        rows, positions = torch.tensor(places, dtype=torch.long, device=x.device).view(-1, 2).unbind(1)
        # a plain LoRA's encoder has made all of the encoding
        own = None if everywhere else self._own(use, entries, x[rows, positions])
        chosen: Context = "prompt" if everywhere or use.adapter.embeddings else self.context or use.adapter.card.context
        if chosen == "prompt":
            return _Edit(use, rows, positions, x[rows, positions] if own is None else own, frozen=own)
        bank = self._bank(use).to(x)
        words = [len(word) for _, binding in entries for word in binding.occurrences]
        read = bank[[piece for pieces in words for piece in _match(pieces, len(bank))]]
        return _Edit(use, rows, positions, read, frozen=read if chosen == "bank" else own)

    def _own(self, use: AdapterUse, entries: Entries, base: Tensor) -> Tensor | None:
        """Embeddings (n, d) of the word as the adapter's own text encoder puts it, None when it has none of its own."""
        if not (use.adapter.embeddings or use.adapter.text_layers):
            return None
        found: dict[tuple[Tokenized, tuple[tuple[int, ...], ...]], Tensor] = {}  # copies of a prompt share theirs
        for row, binding in entries:
            key = self.encoding.tokenized[row], binding.occurrences
            if key not in found:
                found[key] = (self._inverted if use.adapter.embeddings else self._encoded)(use, *key)
        own = torch.cat([found[self.encoding.tokenized[row], binding.occurrences] for row, binding in entries]).to(base)
        return torch.lerp(base, own, use.weight) if use.adapter.embeddings else own

    def _encoded(self, use: AdapterUse, prompt: Tokenized, words: Sequence[Sequence[int]]) -> Tensor:
        """One prompt's, read with the adapter's text-encoder deltas."""
        embeddings = self.encode(prompt.text, self.clip_skip, (use,)).embeddings[0]
        return embeddings[[position for word in words for position in word]]

    def _inverted(self, use: AdapterUse, prompt: Tokenized, words: Sequence[Sequence[int]]) -> Tensor:
        """One prompt's, read with a textual inversion: the word makes room for as many tokens as it has vectors."""
        count = len(next(iter(use.adapter.embeddings.values())))
        spans = [(prompt.offsets[word[0]][0], prompt.offsets[word[-1]][1]) for word in words]
        text, places = replace_spans(prompt.text, spans, " ".join([FILLER] * count))
        longer = self.backbone.tokenize(text)
        positions = [longer.positions(place) for place in places]
        if not all(longer.holds(place) for place in places) or any(len(found) != count for found in positions):
            raise TaraError(
                f"{use.name} stands for {count} tokens, which do not fit into the prompt '{prompt.text}'. Shorten "
                "the prompt."
            )
        vectors = {model: own.repeat(len(words), 1) for model, own in use.adapter.embeddings.items()}
        with embedded(self.backbone.pipe, vectors, [position for found in positions for position in found]):
            embeddings = self.backbone.encode([text], self.clip_skip).embeddings[0]
        kept = [
            found[piece] for word, found in zip(words, positions, strict=True) for piece in _match(len(word), count)
        ]
        return embeddings[kept]

    def _bank(self, use: AdapterUse) -> Tensor:
        """Embeddings (pieces, d) of the rare word in the adapter's training phrase."""
        card = use.adapter.card
        encoding = self.encode(card.phrase, None, (use,))
        tokenized = encoding.tokenized[0]
        spans = [span for span in word_spans(tokenized.text, card.rare_word) if tokenized.holds(span)]
        if not spans:
            raise TaraError(
                f"The training phrase '{card.phrase}' of {use.name} lacks its rare word '{card.rare_word}'. Compose it "
                "with the context 'prompt', or train it again."
            )
        return encoding.embeddings[0, list(tokenized.positions(spans[0]))]


def _match(wanted: int, given: int) -> list[int]:
    """Which of the phrase's ``given`` pieces stands at each of a rebound word's ``wanted`` tokens.

    Aligned at the end, where a causal text encoder has seen the whole word; the first piece is repeated.
    """
    return [max(0, given - wanted + place) for place in range(wanted)]


def _check_apart(edits: Sequence[_Edit]) -> None:
    taken: dict[tuple[int, int], AdapterUse] = {}
    for edit in edits:
        for place in zip(edit.rows.tolist(), edit.positions.tolist(), strict=True):
            if place in taken:
                raise TaraError(
                    f"{taken[place].name} and {edit.use.name} listen to the same tokens. Rebind one "
                    f"({edit.use.name}:word=NEW), or compose with the context 'prompt'."
                )
            taken[place] = edit.use


GlobalPart = Mapping[str, Sequence[tuple[float, LowRank]]]
"""By projection: the weighted deltas that act on everything."""


def global_part(uses: Iterable[AdapterUse]) -> dict[str, list[tuple[float, LowRank]]]:
    """The adapters' deltas outside the text's keys and values, with their weights."""
    parts: dict[str, list[tuple[float, LowRank]]] = {}
    for use in sorted(uses, key=lambda use: use.order):
        if use.global_strength:
            for path, low_rank in use.adapter.global_part.items():
                parts.setdefault(path, []).append((use.global_strength, low_rank))
    return parts


@contextmanager
def fused(unet: Any, parts: GlobalPart) -> Generator[None]:
    """Add global parts to the U-Net's weights for a ``with`` block; afterwards the kept originals are put back."""
    with _added((unet.get_submodule(path), deltas) for path, deltas in parts.items()):
        yield


@contextmanager
def fused_text(backbone: Backbone, uses: Iterable[AdapterUse]) -> Generator[None]:
    """The same for the adapters' deltas of text encoders, each with its adapter's weight."""
    parts: dict[str, list[tuple[float, LowRank]]] = {}
    for use in sorted(uses, key=lambda use: use.order):
        for path, low_rank in use.adapter.text_layers.items():
            parts.setdefault(path, []).append((use.weight, low_rank))
    with _added((backbone.layer(path), deltas) for path, deltas in parts.items()):
        yield


@contextmanager
def _added(parts: Iterable[tuple[Any, Sequence[tuple[float, LowRank]]]]) -> Generator[None]:
    originals: list[tuple[Any, Tensor]] = []
    try:
        for module, deltas in parts:
            weight = getattr(module, "base_layer", module).weight  # PEFT wraps layers that have a LoRA loaded
            originals.append((weight, weight.data))
            precision = torch.promote_types(weight.dtype, torch.float32)
            placed = [(strength, low_rank.to(weight.device, precision)) for strength, low_rank in deltas]
            # one product for all adapters: their sum is a sum over all their ranks
            a = torch.cat([low_rank.a for _, low_rank in placed])
            b = torch.cat([strength * low_rank.scale * low_rank.b for strength, low_rank in placed], dim=1)
            total = weight.data.to(precision).flatten(1) + b @ a
            weight.data = total.view_as(weight).to(weight.dtype)
        yield
    finally:
        for weight, original in originals:
            weight.data = original
