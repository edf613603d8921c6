"""Prepares a batch of prompts and their adapters for a call of a stock pipeline."""

import inspect
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from tara.errors import TaraError
from tara.families.base import Base
from tara.families.processors import CONDITIONING_KEY, TextConditioning
from tara.families.prompt_encoding import tokenize_prompt
from tara.families.text import TextEncoding
from tara.inference.active_adapter import ActiveAdapter, ActiveAdapters
from tara.inference.binding import Binding, bind, bind_all_tokens, class_tokens
from tara.inference.composers import Composer
from tara.inference.composers.sequential import evaluated
from tara.inference.confining import ConfinedAdapter, ConfinedAdapters, confined
from tara.inference.fitting import adapter_for_base
from tara.inference.fusing import fused, global_part
from tara.inference.request import GenerationRequest, RegionMasks, parse_regions
from tara.inference.settings import GenerationSettings
from tara.inference.stock_pipeline import stock_guidance
from tara.inference.text_kv import CachedTextEncoder, compute_text_kv

EncodedRow = tuple[TextEncoding, list[Binding]]
"""One row of encoded text, and for each adapter the tokens of this row on which it acts."""


@dataclass(frozen=True, eq=False)
class PromptRow:
    """One prompt of a batch after its composer: the texts to encode, and the adapters that act.

    ``chunks`` is the number of chunks of the longer of prompt and negative prompt. ``masks`` has the given regions.
    """

    text: str
    negative: str | None
    chunks: int
    acting: ActiveAdapters
    composer: Composer
    masks: RegionMasks

    @property
    def confined_adapters(self) -> ActiveAdapters:
        """The adapters that act in their own regions only. Empty unless the composer is regional."""
        return tuple(
            active for active in self.acting if self.composer.regional and not self._acts_on_whole_image(active)
        )

    def _acts_on_whole_image(self, active: ActiveAdapter) -> bool:
        return self.masks[active.rare_word] is None if active.rare_word in self.masks else active.is_style

    @property
    def unconfined(self) -> ActiveAdapters:
        """The adapters that act on the whole image."""
        return tuple(active for active in self.acting if active not in self.confined_adapters)

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """Rows of one batch have equal keys: number of chunks, composer, and deltas that are fused into the weights."""
        parts = [(id(active.adapter), active.global_strength) for active in self.unconfined if active.global_strength]
        # with one evaluation per adapter, rows must also have equally many adapters, in the same order
        return self.chunks, id(self.composer), *((len(self.acting), *parts) if self.composer.turns else sorted(parts))


@dataclass(frozen=True, eq=False)
class EvaluationInputs:
    """The inputs of one network evaluation of a batch.

    ``arguments`` are those of the pipeline call, ``encoding`` has the rows of the network's batch, and the global parts
    of ``adapters`` are fused into the weights. ``confined`` is None if no adapter is confined to a region.
    """

    arguments: dict[str, Any]
    conditioning: TextConditioning
    encoding: TextEncoding
    adapters: ActiveAdapters
    confined: ConfinedAdapters | None = None


@dataclass(frozen=True, eq=False)
class PreparedBatch:
    """A batch that is ready for its pipeline call. It has several evaluations only with a sequential composer."""

    rows: Sequence[PromptRow]
    arguments: dict[str, Any]
    evaluations: tuple[EvaluationInputs, ...]


def prompt_rows(base: Base, requests: Sequence[GenerationRequest]) -> list[PromptRow]:
    """Check each request's adapters against the base, apply its composer and return one row per request.

    Raises:
        TaraError: for an adapter that does not fit the base, the composer or the prompt, or an impossible region.
    """
    rare_words = {active.rare_word for request in requests for active in request.adapters}
    masks = parse_regions(requests[0].settings.region, rare_words)
    ready: dict[tuple[ActiveAdapter, Composer], ActiveAdapter] = {}
    # prompts with the same adapters share their merge, and so a batch
    acting: dict[ActiveAdapters, ActiveAdapters] = {}
    rows: list[PromptRow] = []
    for request in requests:
        composer = request.settings.composer_for(request.adapters)
        for active in request.adapters:
            if (active, composer) not in ready:
                ready[active, composer] = adapter_for_base(base, active, regional=composer.regional)
        own = tuple(ready[active, composer] for active in request.adapters)
        if own not in acting:
            acting[own] = composer.adapters(own)
            _check_maskable(acting[own] if composer.masked else ())
        text = composer.prompt(request.prompt, own)
        negative = request.settings.negative_prompt
        chunks = max(len(tokenize_prompt(base, prompt).spans) for prompt in (text, negative or ""))
        rows.append(PromptRow(text, negative, chunks, acting[own], composer, masks))
    return rows


def prepared_batch(
    encoder: CachedTextEncoder,
    pipe: Any,
    rows: Sequence[PromptRow],
    settings: GenerationSettings,
    copies: int = 1,
) -> PreparedBatch:
    """Prepare the rows of one batch for a call of ``pipe``.

    Args:
        encoder: the text encoder of the base.
        pipe: the pipeline that will be called. It shares its components with the base's pipeline.
        rows: rows with equal `PromptRow.batch_key`.
        settings: uses guidance_scale (None: the pipeline's default), clip_skip and context.
        copies: ``num_images_per_prompt`` of the call.

    Raises:
        TaraError: for a pipeline that takes no adapters, and when an adapter does not fit the prompt.
    """
    parameters = inspect.signature(pipe.__call__).parameters
    if "cross_attention_kwargs" not in parameters:
        raise TaraError(
            f"A {type(pipe).__name__} call takes no cross_attention_kwargs. Use a stock text-to-image, "
            "image-to-image, inpainting or ControlNet pipeline."
        )
    guidance = stock_guidance(pipe) if settings.guidance_scale is None else settings.guidance_scale
    guided = encoder.base.family.is_guided(pipe, guidance)
    batch = _Batch(encoder=encoder, settings=settings, copies=copies, guided=guided)
    count = len(rows[0].acting) if rows[0].composer.turns else 1
    # if there are several evaluations, each uses one adapter
    parts = [[replace(row, acting=(row.acting[n],)) for row in rows] for n in range(count)] if count > 1 else [rows]
    evaluations = tuple(map(batch.inputs, parts))
    arguments = {
        **evaluations[0].arguments,
        "guidance_scale": guidance,
        "num_images_per_prompt": copies,
        "cross_attention_kwargs": {CONDITIONING_KEY: evaluations[0].conditioning},
    }
    return PreparedBatch(rows, arguments, evaluations)


@contextmanager
def applied(base: Base, batch: PreparedBatch) -> Generator[None]:
    """In a ``with`` block, install the attention processors and apply the adapters' global parts for a batch."""
    before = base.processors.installed
    base.processors.install()
    first, turns = batch.evaluations[0], batch.rows[0].composer.turns
    try:
        if turns is not None and len(batch.evaluations) > 1:
            with evaluated(base, batch.evaluations, turns):
                yield
        else:  # with one evaluation the global parts are fused once, not at every step
            with fused(base, global_part(first.adapters)), confined(base, first.confined):
                yield
    finally:
        if not before:
            base.processors.release()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Batch:
    """Encodes the rows of one batch.

    The stock rows come first. They are the rows of the pipeline call, ``[negative..., conditional...]``. Then come the
    regional rows: for each stock row, in the same order, one row per confined adapter. The copies of a row are
    consecutive. Without guidance there are no negative rows.
    """

    encoder: CachedTextEncoder
    settings: GenerationSettings
    copies: int
    guided: bool

    @property
    def _parts(self) -> tuple[bool, ...]:
        """The parts of the batch in order: True for negative rows, False for conditional rows."""
        return (True, False) if self.guided else (False,)

    def inputs(self, rows: Sequence[PromptRow]) -> EvaluationInputs:
        """Encode the rows and compute the inputs of one network evaluation."""
        copied = [row for row in rows for _ in range(self.copies)]
        stock_rows, regional_rows = self._stock_rows(copied), self._regional_rows(copied)
        conditioning = compute_text_kv(
            self.encoder,
            TextEncoding.join([encoding for encoding, _ in stock_rows + regional_rows]),
            [bindings for _, bindings in stock_rows + regional_rows],
            self.settings.context,
            self.settings.clip_skip,
        )
        encoding = TextEncoding.join([encoding for encoding, _ in stock_rows])
        confinement = self._confinement(copied)
        return EvaluationInputs(
            self._pipeline_arguments(encoding),
            replace(conditioning, regional=confinement),
            encoding,
            rows[0].unconfined,
            confinement,
        )

    def _stock_rows(self, rows: Sequence[PromptRow]) -> list[EncodedRow]:
        return [self._encoded(row, row.unconfined, negative=negative) for negative in self._parts for row in rows]

    def _regional_rows(self, rows: Sequence[PromptRow]) -> list[EncodedRow]:
        return [
            self._encoded(row, (*row.unconfined, active), negative=negative)
            for negative in self._parts
            for row in rows
            for active in row.confined_adapters
        ]

    def _encoded(self, row: PromptRow, acting: ActiveAdapters, *, negative: bool) -> EncodedRow:
        """Encode a row's prompt or negative prompt, and find the tokens on which the ``acting`` adapters act."""
        composer = row.composer
        masked = [
            active
            for active in acting
            if composer.masked or (composer.regional and active.adapter.trained_with_token_mask)
        ]
        # text-encoder deltas of plain LoRAs act on the whole text; those of masked adapters only on their own rare word
        plain = tuple(active for active in acting if active not in masked)
        if negative:
            encoding = self.encoder.encode_negative(row.negative, plain, row.chunks)
        else:
            encoding = self.encoder.encode(row.text, self.settings.clip_skip, plain, row.chunks)
        bindings = bind_all_tokens(encoding.tokenized[0], plain)
        if masked and not negative:
            bindings += [binding for binding in bind(encoding.tokenized[0], row.acting) if binding.active in masked]
        return encoding, bindings

    def _pipeline_arguments(self, encoding: TextEncoding) -> dict[str, Tensor]:
        """The embeddings of each stock row's first copy. The pipeline call makes the other copies itself."""
        arguments: dict[str, Tensor] = {}
        rows = encoding.rows // len(self._parts)
        for part, negative in enumerate(self._parts):
            first_copies = encoding.take(range(part * rows, (part + 1) * rows, self.copies))
            prefix = "negative_" if negative else ""
            arguments[f"{prefix}prompt_embeds"] = first_copies.embeddings
            if first_copies.pooled is not None:
                arguments[f"{prefix}pooled_prompt_embeds"] = first_copies.pooled
        return arguments

    def _confinement(self, rows: Sequence[PromptRow]) -> ConfinedAdapters | None:
        images = [self._confined_in(row) for row in rows]
        return ConfinedAdapters(self.encoder.base, images, self.guided) if any(images) else None

    def _confined_in(self, row: PromptRow) -> list[ConfinedAdapter]:
        """A row's confined adapters, each with its mask or with the tokens whose attention finds its region."""
        tokens = tokenize_prompt(self.encoder.base, row.text).tokenized
        bindings = bind(tokens, row.acting) if row.confined_adapters else []
        return [
            ConfinedAdapter(binding.active, () if mask is not None else class_tokens(tokens, binding), mask)
            for binding in bindings
            if binding.active in row.confined_adapters
            for mask in (row.masks.get(binding.active.rare_word),)
        ]


def _check_maskable(adapters: Iterable[ActiveAdapter]) -> None:
    for active in adapters:
        if method := active.adapter.card.method:
            raise TaraError(
                f"{active.name} contains {method}, which cannot be masked by a rare word. Use the composer sum or "
                "regions."
            )
