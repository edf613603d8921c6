"""The text of a training: captions, encoded once, and keys and values of a batch with its concepts' deltas."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tara.core.method import add_masked_delta, token_alignment_loss
from tara.core.tokens import Span, Tokenized, class_word_of, word_spans
from tara.errors import TaraError
from tara.families.base import Base
from tara.families.processors import KeysValues, TextConditioning
from tara.families.text import TextEncoding
from tara.training.settings import TrainSettings
from tara.training.weights import ConceptWeights, per_row

KV_BUDGET = 2**30  # bytes of cached keys and values; those of further captions are computed again in each call


@dataclass(frozen=True, eq=False)
class Caption:
    """An encoded caption and the positions of its words."""

    text: str
    encoding: TextEncoding
    rare_positions: tuple[int, ...]
    """Positions of the rare word's tokens, every occurrence: where the token mask is 1."""
    first_rare_positions: tuple[int, ...]
    """Positions of the first occurrence, which the alignment loss reads."""
    class_positions: tuple[int, ...]
    """Positions of the class word that belongs to it, empty when the caption has none."""


class TextCache:
    """Encoded captions, and their keys and values without any delta, in each text layer."""

    def __init__(self, base: Base) -> None:
        self._base, self._budget = base, KV_BUDGET
        self._encodings: dict[str, TextEncoding] = {}
        self._kv: dict[str, dict[str, KeysValues]] = {}

    def kv(self, caption: Caption) -> dict[str, KeysValues]:
        """The caption's frozen keys and values, (1, tokens, inner) each, by layer."""
        if caption.text in self._kv:
            return self._kv[caption.text]
        computed = self._base.project_text(caption.encoding.embeddings)
        size = sum(part.nbytes for pair in computed.values() for part in pair)
        if size <= self._budget:
            self._budget -= size
            self._kv[caption.text] = computed
        return computed

    def caption(self, text: str, rare_word: str, class_word: str) -> Caption:
        """Encode a caption and find its words. Texts are cached. Without the rare word, both words have no positions.

        Raises:
            TaraError: when a word is beyond the text encoder's token limit.
        """
        if text not in self._encodings:
            self._encodings[text] = self._base.encode([text])
        encoding = self._encodings[text]
        tokenized = encoding.tokenized[0]
        rare, of_class = caption_words(tokenized, rare_word, class_word)
        return Caption(
            text,
            encoding,
            rare_positions=tuple(position for span in rare for position in tokenized.positions(span)),
            first_rare_positions=tokenized.positions(rare[0]) if rare else (),
            class_positions=() if of_class is None else tokenized.positions(of_class),
        )


def caption_words(caption: Tokenized, rare_word: str, class_word: str) -> tuple[list[Span], Span | None]:
    """Every span of the rare word in a caption, and the class word that belongs to the first one, or None.

    Raises:
        TaraError: when a word is beyond the text encoder's token limit.
    """
    rare = word_spans(caption.text, rare_word)
    of_class = class_word_of(caption.text, rare[0], class_word) if rare else None
    for span in (*rare, of_class):
        if span is not None and not caption.holds(span):
            raise TaraError(
                f"'{caption.text[slice(*span)]}' is beyond the part that the text encoder reads of "
                f"'{caption.text}'. Shorten the caption."
            )
    return rare, of_class


@dataclass(frozen=True, kw_only=True, eq=False)
class TextBatch:
    """The text embeddings, keys and values of a call without deltas, and the positions where deltas act."""

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
        texts: cache of their keys and values.
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
    """Embeddings of the rare words' tokens, zero-padded to the same number per concept, and their flat positions."""
    tokens, per_concept = embeddings.shape[1], len(captions) // concepts
    positions: list[list[int]] = [[] for _ in range(concepts)]
    for row, caption in enumerate(captions):
        positions[row // per_concept] += [row * tokens + position for position in caption.rare_positions]
    longest = max(map(len, positions))
    # padding adds a zero delta to the first token of the concept's own rows, which changes nothing
    padded = [used + [concept * per_concept * tokens] * (longest - len(used)) for concept, used in enumerate(positions)]
    counted = [[1.0] * len(used) + [0.0] * (longest - len(used)) for used in positions]
    index = torch.tensor(padded, dtype=torch.long, device=embeddings.device)  # empty where all captions were dropped
    inputs = embeddings.flatten(0, 1)[index] * embeddings.new_tensor(counted)[:, :, None]
    return inputs, index.flatten()


def text_conditioning(base: Base, text: TextBatch, weights: ConceptWeights) -> TextConditioning:
    """Keys and values of each row with its concept's delta. Deltas of other layers are passed on per row."""
    deltas = weights.deltas(base.dtype)
    kv: dict[str, KeysValues] = {}
    for layer, frozen in text.kv.items():
        keys, values = (
            add_masked_delta(part, deltas.pop(f"{layer}.{name}"), text.inputs, text.positions)
            for name, part in zip(base.family.kv_names, frozen, strict=True)
        )
        kv[layer] = keys, values
    rows_per_concept = len(text.captions) // len(weights.flat)
    return TextConditioning(kv, {path: per_row(delta, rows_per_concept) for path, delta in deltas.items()} or None)


def alignment(text: TextBatch, learned: TextConditioning, settings: TrainSettings) -> Float[Tensor, " concepts"]:
    """The token alignment loss of each concept, over its photo rows (not its class images).

    ``learned`` are the rows of ``text`` with their deltas; see `tara.core.method.token_alignment_loss`. Rows whose
    caption was dropped do not count; without any row the loss is 0.
    """
    assert settings.alignment_loss != "off", "then there is no such loss"
    losses: list[Tensor] = []
    per_concept = len(text.captions) // len(text.inputs)
    for first in range(0, len(text.captions), per_concept):
        photos = range(first, first + settings.batch_size)  # class images follow
        rows = [row for row in photos if text.captions[row].rare_positions]
        if not rows:
            losses.append(_keys(next(iter(learned.kv.values()))[0], first, (0,)).new_zeros(()))
            continue
        # if all photos have the same caption, one row is enough
        shared = all(text.captions[row] is text.captions[rows[0]] for row in rows)
        pairs = [(layer, row) for layer in text.kv for row in (rows[:1] if shared else rows)]
        rare = [_keys(learned.kv[layer][0], row, text.captions[row].first_rare_positions) for layer, row in pairs]
        of_class = [_keys(text.kv[layer][0], row, text.captions[row].class_positions) for layer, row in pairs]
        losses.append(token_alignment_loss(rare, of_class, settings.alignment_loss, settings.alignment_subwords))
    return torch.stack(losses)


def _keys(keys: Float[Tensor, "rows tokens inner"], row: int, positions: Sequence[int]) -> Tensor:
    """The keys of a word's consecutive tokens, at least in float32."""
    word = keys[row, min(positions) : max(positions) + 1]
    # in fp16 the gradient of the scaled loss would overflow, and bf16 rounds small distances to 0
    return word.to(torch.promote_types(word.dtype, torch.float32))
