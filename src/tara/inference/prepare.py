"""Turns prompts and adapters into the arguments of a stock diffusers pipeline call."""

import inspect
from collections.abc import Generator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tara.errors import TaraError, nearest
from tara.families.base import Base
from tara.families.processors import CONDITIONING_KEY, INSTALLED, TextConditioning
from tara.families.text import TextEncoding
from tara.inference.active_adapter import ActiveAdapter, ActiveAdapters, AdapterLists
from tara.inference.binding import Binding, bind, bind_everywhere, class_tokens, warn_if_cut
from tara.inference.composers import Composer
from tara.inference.composers.sequential import evaluated
from tara.inference.confining import Concept, ConfinedAdapters, confined
from tara.inference.fusing import fused, fused_text, global_part
from tara.inference.rows import PromptRow, prompt_rows
from tara.inference.settings import GenerationSettings
from tara.inference.text_kv import text_kv
from tara.storage.validation import build, takes

EncodingCache = MutableMapping[tuple[Any, ...], TextEncoding]
CACHED_TEXTS = 256  # a text is about 0.2 MB (SD 1.5) to 0.6 MB (SDXL)


@dataclass(frozen=True, eq=False)
class Conditioned:
    """What one network evaluation of a batch uses.

    ``encoding`` has the rows of the network's batch; ``adapters`` are those whose global parts are in the weights.
    """

    arguments: dict[str, Any]
    conditioning: TextConditioning
    encoding: TextEncoding
    adapters: ActiveAdapters
    regions: ConfinedAdapters | None = None


@dataclass(frozen=True, eq=False)
class PreparedBatch:
    """A batch that is ready for its pipeline call; several evaluations only for sequential composers."""

    arguments: dict[str, Any]
    evaluations: tuple[Conditioned, ...]
    composer: Composer


SETTINGS = ("guidance_scale", "clip_skip", "context", "composer", "region")


@takes(GenerationSettings, only=SETTINGS)
def prepare(
    pipe: Any,
    prompt: str | Sequence[str],
    adapters: AdapterLists = (),
    *,
    negative_prompt: str | Sequence[str] | None = None,
    num_images_per_prompt: int = 1,
    **settings: Any,
) -> dict[str, Any]:
    """Keyword arguments for a stock diffusers pipeline call: ``pipe(**tara.prepare(pipe, ...), image=..., ...)``.

    For text-to-image, image-to-image, inpainting and ControlNet pipelines of SD 1.x, 2.x and SDXL. Installs attention
    processors; until `release` removes them, other code must not load LoRAs into the pipeline, set its processors or
    compile it. Calls without these arguments give what they gave before.

    Args:
        pipe: a loaded pipeline.
        prompt: one prompt or several.
        adapters: for all prompts, or one list for each prompt; see `tara.inference.active_adapter.AdapterLike`.
        negative_prompt: for all prompts, or one for each; adapters never act on it. It is given here, not to the
            pipeline call, which refuses a negative prompt beside its embeddings.
        num_images_per_prompt: given here, not to the pipeline call.
        settings: guidance_scale, clip_skip, context, composer and region of
            `tara.inference.settings.GenerationSettings`, given here alone. Everything else, such as
            num_inference_steps, generator, width, height and image, goes to the pipeline call.

    Returns:
        ``prompt_embeds``, ``negative_prompt_embeds`` with guidance, their pooled vectors for SDXL, ``guidance_scale``,
        ``num_images_per_prompt`` and ``cross_attention_kwargs`` with the adapters' keys and values.

    Raises:
        TaraError: when an adapter does not fit the base or the prompt, or has a global part, and for a composer that
            takes several network evaluations a step (use `prepared`).
    """
    base, batch = _prepared(pipe, prompt, adapters, negative_prompt, num_images_per_prompt, settings)
    if len(batch.evaluations) > 1:
        raise TaraError(
            "This composer evaluates the network with one adapter after the other. Use `with tara.prepared(...) as "
            "kwargs:`."
        )
    for active in (active for one in batch.evaluations for active in one.adapters):
        if active.global_strength:
            raise TaraError(
                f"{active.name} also changes layers that act on the whole image. Use `with tara.prepared(...) as "
                f"kwargs:`, or leave that part out with {active.name}:global=0."
            )
    if any(one.regions for one in batch.evaluations):
        raise TaraError("This composer confines adapters to regions of the image. Use `with tara.prepared(...)`.")
    base.processors.install()
    return batch.arguments


@takes(GenerationSettings, only=SETTINGS)
@contextmanager
def prepared(
    pipe: Any,
    prompt: str | Sequence[str],
    adapters: AdapterLists = (),
    *,
    negative_prompt: str | Sequence[str] | None = None,
    num_images_per_prompt: int = 1,
    **settings: Any,
) -> Generator[dict[str, Any]]:
    """`prepare` for a ``with`` block, also for adapters with a global part, which is fused into the weights.

    And for every composer. Afterwards, also after an exception, the pipeline is what it was.

    Raises:
        TaraError: as `prepare`, and when the prompts' global parts differ.
    """
    base, batch = _prepared(pipe, prompt, adapters, negative_prompt, num_images_per_prompt, settings)
    with applied(base, batch):
        yield batch.arguments


def release(pipe: Any) -> None:
    """Remove our attention processors from a pipeline again."""
    # whatever the pipeline has become since: what is to be undone needs no supported base
    for part in vars(pipe).values():
        if hasattr(part, INSTALLED):
            getattr(part, INSTALLED).release()


def _prepared(
    pipe: Any,
    prompt: str | Sequence[str],
    adapters: AdapterLists,
    negative_prompt: str | Sequence[str] | None,
    copies: int,
    settings: dict[str, Any],
) -> tuple[Base, PreparedBatch]:
    if copies < 1:
        raise TaraError(f"num_images_per_prompt is {copies}. Give 1 or more.")
    if others := [name for name in settings if name not in SETTINGS]:
        hint = nearest(others[0], SETTINGS)
        raise TaraError(
            f"tara.prepare takes {', '.join(SETTINGS)}, not '{others[0]}'.{hint} Give it to the pipeline call: "
            f"pipe(**tara.prepare(...), {others[0]}=...)."
        )
    base, chosen = Base(pipe), build(GenerationSettings, settings)
    rows = prompt_rows(base, prompt, adapters, negative_prompt, chosen.composer_for, chosen.region)
    if len({row.batch_key for row in rows}) > 1:
        raise TaraError(
            "The adapters of these prompts need different network weights. Generate the prompts one by one."
        )
    return base, prepared_batch(base, pipe, rows, chosen, copies)


@contextmanager
def applied(base: Base, batch: PreparedBatch) -> Generator[None]:
    """The base as a batch's pipeline calls need it, for a ``with`` block: processors in, global parts fused."""
    before = base.processors.installed
    turns = batch.composer.turns
    one = len(batch.evaluations) == 1 or turns is None
    try:
        # with one evaluation the global parts are fused once, not at every step
        with fused(base, global_part(batch.evaluations[0].adapters) if one else {}):
            base.processors.install()
            if one or turns is None:
                with confined(base, batch.evaluations[0].regions):
                    yield
            else:
                with evaluated(base, batch.evaluations, turns):
                    yield
    finally:
        if not before:
            base.processors.release()


def prepared_batch(
    base: Base,
    pipe: Any,
    rows: Sequence[PromptRow],
    settings: GenerationSettings,
    copies: int = 1,
    cache: EncodingCache | None = None,
) -> PreparedBatch:
    """Rows of one batch made ready for a call of ``pipe``, which shares its parts with the base's pipeline.

    Args:
        base: the base.
        pipe: what will be called.
        rows: of one `PromptRow.batch_key`.
        settings: guidance_scale, clip_skip, context and composer are used.
        copies: ``num_images_per_prompt`` of the call.
        cache: encoded texts, kept between calls.
    """
    parameters = inspect.signature(pipe.__call__).parameters
    if "cross_attention_kwargs" not in parameters:
        raise TaraError(
            f"A {type(pipe).__name__} call takes no cross_attention_kwargs. Use a stock text-to-image, "
            "image-to-image, inpainting or ControlNet pipeline."
        )
    guidance = stock_guidance(pipe) if settings.guidance_scale is None else settings.guidance_scale
    batch = _Batch(
        base=base,
        settings=settings,
        copies=copies,
        guided=base.family.is_guided(pipe, guidance),
        cache={} if cache is None else cache,
    )
    batch.warn_of_lost_text(rows)
    composer = rows[0].composer
    count = len(rows[0].acting) if composer.turns else 1
    evaluations = (
        [batch.conditioned([replace(row, acting=(row.acting[number],)) for row in rows]) for number in range(count)]
        if count > 1
        else [batch.conditioned(rows)]
    )
    arguments = {
        **evaluations[0].arguments,
        "guidance_scale": guidance,
        "num_images_per_prompt": copies,
        "cross_attention_kwargs": {CONDITIONING_KEY: evaluations[0].conditioning},
    }
    return PreparedBatch(arguments, tuple(evaluations), composer)


def stock_guidance(pipe: Any) -> float:
    """The guidance scale of a pipeline call that names none."""
    return float(inspect.signature(pipe.__call__).parameters["guidance_scale"].default)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Batch:
    """How the rows of one batch are encoded; each text is encoded once."""

    base: Base
    settings: GenerationSettings
    copies: int
    guided: bool
    cache: EncodingCache

    def warn_of_lost_text(self, rows: Sequence[PromptRow]) -> None:
        for text in dict.fromkeys(row.text for row in rows):
            warn_if_cut(self.base.tokenize(text))
        for text in dict.fromkeys(row.negative or "" for row in rows) if self.guided else ():
            warn_if_cut(self.base.tokenize(text), "negative prompt")

    def conditioned(self, rows: Sequence[PromptRow]) -> Conditioned:
        """The embeddings of the pipeline call, and what the network evaluation uses."""
        rows = [row for row in rows for _ in range(self.copies)]
        in_call = ([self._of_row(row, negative=True) for row in rows] if self.guided else []) + [
            self._of_row(row, negative=False) for row in rows
        ]
        concepts = [self._concepts(row) for row in rows]
        regions = ConfinedAdapters(self.base, concepts, self.guided) if any(concepts) else None
        in_regions = [
            self._of_row(row, negative=negative, confined=active)
            for negative in ((True, False) if self.guided else (False,))
            for row in rows
            for active in row.confined
        ]
        encoding = TextEncoding.join([text for text, _ in in_call])
        conditioning = text_kv(
            self.base,
            TextEncoding.join([text for text, _ in in_call + in_regions]),
            [bindings for _, bindings in in_call + in_regions],
            self.settings.context,
            self._encode,
            self.settings.clip_skip,
        )
        once = range(0, len(rows), self.copies)  # the pipeline call makes the copies
        arguments = _embeddings(encoding.take([len(in_call) - len(rows) + row for row in once]), "")
        if self.guided:
            arguments |= _embeddings(encoding.take(once), "negative_")
        return Conditioned(arguments, replace(conditioning, regions=regions), encoding, rows[0].everywhere, regions)

    def _of_row(
        self, row: PromptRow, *, negative: bool, confined: ActiveAdapter | None = None
    ) -> tuple[TextEncoding, list[Binding]]:
        """A row's text with adapters where they act on it: those of the whole image, and one in its own region."""
        acting = row.everywhere if confined is None else (*row.everywhere, confined)
        composer = row.composer
        masked = [one for one in acting if composer.masked or (composer.regional and one.adapter.learned_masked)]
        # plain LoRAs are in the encoders for all of a row's text; else an adapter reads its own word there, alone
        plain = tuple(active for active in acting if active not in masked)
        if negative:
            encoding = self._cached(row.negative, None, plain, negative=True)
        else:
            encoding = self._encode(row.text, self.settings.clip_skip, plain)
        bindings = bind_everywhere(encoding.tokenized[0], plain)
        if masked and not negative:
            bindings += [one for one in bind(encoding.tokenized[0], row.acting) if one.active in masked]
        return encoding, bindings

    def _concepts(self, row: PromptRow) -> list[Concept]:
        """What is confined, and the tokens by which its region is found."""
        tokens = self.base.tokenize(row.text)
        bindings = bind(tokens, row.acting) if row.confined else []
        return [
            Concept(one.active, () if place is not None else class_tokens(tokens, one), place)
            for one in bindings
            if one.active in row.confined
            for place in (row.places.get(one.active.rare_word),)
        ]

    def _encode(self, text: str, clip_skip: int | None, adapters: Sequence[ActiveAdapter]) -> TextEncoding:
        return self._cached(text, clip_skip, adapters, negative=False)

    def _cached(
        self, text: str | None, clip_skip: int | None, adapters: Sequence[ActiveAdapter], *, negative: bool
    ) -> TextEncoding:
        own = [active for active in adapters if active.adapter.text_layers and active.weight]
        # adapters themselves, not their ids: an id may be given to another one as soon as the first is gone
        key = text, clip_skip, negative, tuple((active.adapter, active.weight) for active in own)
        if key not in self.cache:
            if len(self.cache) >= CACHED_TEXTS:
                self.cache.clear()
            with fused_text(self.base, own):
                self.cache[key] = (
                    self.base.encode_negative(text) if negative else self.base.encode([text or ""], clip_skip)
                )
        return self.cache[key]


def _embeddings(encoding: TextEncoding, prefix: str) -> dict[str, Any]:
    pooled = {} if encoding.pooled is None else {f"{prefix}pooled_prompt_embeds": encoding.pooled}
    return {f"{prefix}prompt_embeds": encoding.embeddings, **pooled}
