"""Prompts and adapters to the arguments of a stock diffusers pipeline call."""

import inspect
from collections.abc import Generator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast, get_args

from tara.adapters.adapter import Adapter, Context
from tara.errors import TaraError, nearest
from tara.families.base import Backbone, TextEncoding
from tara.families.processors import KEY, installed, uninstall
from tara.inference.binding import (
    AdapterLike,
    AdapterLists,
    AdapterUse,
    Binding,
    as_use,
    bind,
    bind_everywhere,
    warn_if_cut,
)
from tara.inference.composers import Composer, Turn, Uses, check_composable, composer_named
from tara.inference.composers.sequential import Evaluation, averaged
from tara.inference.strength import check_strength
from tara.inference.text_kv import check_fits, fused, fused_text, global_part, text_kv

Encoders = tuple[tuple[Adapter, float], ...]
"""The adapters, with their weights, whose text-encoder deltas are in the base's encoders."""

EncodingCache = MutableMapping[tuple[str | None, int | None, bool, Encoders], TextEncoding]
CACHED_TEXTS = 256  # a text is about 0.2 MB (SD 1.5) to 0.6 MB (SDXL)


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How prompts become keys and values.

    ``guidance_scale`` is the pipeline's own default when None; at 1 or less, guidance and its rows are off.
    ``context`` is each card's own choice when None, see :data:`tara.adapters.adapter.Context`.
    ``composer`` is one of :data:`tara.inference.composers.COMPOSERS` by its name, or one of your own.
    """

    guidance_scale: float | None = None
    num_images_per_prompt: int = 1
    clip_skip: int | None = None
    context: Context | None = None
    composer: str | Composer = "tara"

    def __post_init__(self) -> None:
        composer_named(self.composer)
        if self.context not in {None, *get_args(Context)}:
            raise TaraError(f"context is '{self.context}'. Choose one of {', '.join(get_args(Context))}.")
        if self.num_images_per_prompt < 1:
            raise TaraError(f"num_images_per_prompt is {self.num_images_per_prompt}. Give 1 or more.")

    @property
    def composed_by(self) -> Composer:
        """The composer itself."""
        return composer_named(self.composer)


@dataclass(frozen=True, eq=False)
class PromptRow:
    """One prompt, what to keep away from, and its adapters, as a composer lays them out.

    ``text`` is what is drawn of the prompt, ``members`` are the adapters of each U-Net evaluation.
    """

    prompt: str
    negative: str | None
    uses: Uses
    text: str
    members: tuple[Uses, ...]

    @property
    def batch_key(self) -> tuple[tuple[tuple[int, float], ...], ...]:
        """What rows must share to be drawn in one batch: each evaluation's global parts, which sit in the weights."""
        return tuple(
            tuple(sorted((id(use.adapter), use.global_strength) for use in member if use.global_strength))
            for member in self.members
        )


@dataclass(frozen=True, eq=False)
class Composed:
    """A batch made ready: the arguments of its pipeline call, and what the U-Net evaluations in it see."""

    arguments: dict[str, Any]
    evaluations: tuple[Evaluation, ...]
    turn: Turn


def prepare(
    pipe: Any,
    prompt: str | Sequence[str],
    adapters: AdapterLists = (),
    *,
    negative_prompt: str | Sequence[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Keyword arguments for a stock diffusers pipeline call: ``pipe(**tara.prepare(pipe, ...), image=..., ...)``.

    Text-to-image, image-to-image, inpainting and ControlNet pipelines of SD 1.x, 2.x and SDXL. Puts processors on the
    U-Net that act exactly as stock ones in every other call; :func:`release` takes them off.

    Args:
        pipe: a loaded pipeline.
        prompt: one prompt or several.
        adapters: for all prompts, or one list for each prompt; see :data:`tara.inference.binding.AdapterLike`.
        negative_prompt: for all prompts, or one for each; adapters never act on it.
        options: fields of :class:`TextOptions`: guidance_scale, num_images_per_prompt, clip_skip, context, composer.

    Raises:
        TaraError: when an adapter does not fit the base or the prompt, or has a global part, and for a composer that
            evaluates the U-Net in its own way (use :func:`prepared`).
    """
    backbone, chosen = Backbone.from_pipeline(pipe), text_options(options)
    rows = prompt_rows(backbone, prompt, adapters, negative_prompt, chosen.composed_by)
    for row in (row for row in rows if any(row.batch_key)):
        use = next((use for use in row.uses if use.global_strength), row.members[0][0])  # not a merge's name
        raise TaraError(
            f"{use.name} also changes layers that act on everything. Use `with tara.prepared(...) as kwargs:`, or "
            f"leave that part out with {use.name}:global=0."
        )
    if any(len(row.members) > 1 for row in rows):
        raise TaraError(
            "This composer evaluates the U-Net with one adapter after the other. Use `with tara.prepared(...) as "
            "kwargs:`."
        )
    arguments = composed(backbone, rows, chosen).arguments
    backbone.install()
    return arguments


@contextmanager
def prepared(
    pipe: Any,
    prompt: str | Sequence[str],
    adapters: AdapterLists = (),
    *,
    negative_prompt: str | Sequence[str] | None = None,
    **options: Any,
) -> Generator[dict[str, Any]]:
    """:func:`prepare` for a ``with`` block, also for adapters with a global part: it is in the U-Net's weights inside.

    And for every composer. Afterwards, also after an exception, the U-Net is what it was.

    Raises:
        TaraError: as :func:`prepare`, and when the prompts' global parts differ.
    """
    backbone, chosen = Backbone.from_pipeline(pipe), text_options(options)
    rows = prompt_rows(backbone, prompt, adapters, negative_prompt, chosen.composed_by)
    if len({row.batch_key for row in rows}) > 1:
        raise TaraError("The prompts' adapters need different U-Net calls. Draw these prompts one by one.")
    batch = composed(backbone, rows, chosen)
    with at_work(backbone, batch):
        yield batch.arguments


def release(pipe: Any) -> None:
    """Take our processors off the pipeline's U-Net again."""
    # whatever the pipeline has become since: what is to be undone needs no supported base
    uninstall(pipe.unet)


@contextmanager
def borrowed(backbone: Backbone, uses: Sequence[AdapterUse]) -> Generator[None]:
    """The U-Net with our processors and the adapters' global parts, for a ``with`` block."""
    before = installed(backbone.unet)
    try:
        with fused(backbone.unet, global_part(uses)):
            backbone.install()
            yield
    finally:
        if not before:
            backbone.release()


@contextmanager
def at_work(backbone: Backbone, batch: Composed) -> Generator[None]:
    """The U-Net as a batch's pipeline calls need it, for a ``with`` block."""
    if len(batch.evaluations) == 1:  # its global parts are fused once, not at every step
        with borrowed(backbone, batch.evaluations[0].uses):
            yield
        return
    with borrowed(backbone, ()), averaged(backbone.unet, batch.evaluations, batch.turn):
        yield


def text_options(options: Mapping[str, Any]) -> TextOptions:
    """Options by name; TaraError for an unknown name or value."""
    known = [field.name for field in fields(TextOptions)]
    for name in options.keys() - set(known):
        raise TaraError(f"There is no option '{name}'.{nearest(name, known)} Known: {', '.join(known)}.")
    return TextOptions(**options)


def prompt_rows(
    backbone: Backbone,
    prompt: str | Sequence[str],
    adapters: AdapterLists,
    negative_prompt: str | Sequence[str] | None,
    composer: Composer,
) -> list[PromptRow]:
    """One row per prompt, its adapters loaded, checked against the base and laid out by the composer."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise TaraError("There is no prompt. Give at least one.")
    if negative_prompt is None or isinstance(negative_prompt, str):
        negatives: list[str | None] = [negative_prompt] * len(prompts)
    else:
        negatives = list(negative_prompt)
    per_prompt = _per_prompt(adapters, len(prompts))
    if len(negatives) != len(prompts):
        raise TaraError(f"There are {len(prompts)} prompts but {len(negatives)} negative ones. Give one, or as many.")
    for use in {id(use): use for uses in per_prompt for use in uses}.values():
        check_fits(backbone, use)
        check_strength(backbone, use)
    members: dict[Uses, tuple[Uses, ...]] = {}
    for uses in dict.fromkeys(per_prompt):  # prompts with the same adapters share their merge, and so a batch
        check_composable(composer, uses)
        members[uses] = composer.members(uses)
    return [
        PromptRow(text, negative, uses, composer.prompt(text, uses), members[uses])
        for text, negative, uses in zip(prompts, negatives, per_prompt, strict=True)
    ]


def _per_prompt(adapters: AdapterLists, prompts: int) -> list[tuple[AdapterUse, ...]]:
    if isinstance(adapters, (str, Path, Adapter, AdapterUse)):
        raise TaraError("adapters is one adapter, not a list. Write adapters=[...].")
    flat = cast(list[AdapterLike], [entry for entry in adapters if not isinstance(entry, (list, tuple))])
    if len(flat) == len(adapters):
        return [tuple(as_use(entry) for entry in flat)] * prompts
    if flat or len(adapters) != prompts:
        raise TaraError(f"adapters has {len(adapters)} entries. Give one list for all prompts, or {prompts} lists.")
    lists = cast(Sequence[Sequence[AdapterLike]], adapters)
    # each file is read once, and rows that name the same one share its global part
    named = {str(entry): as_use(entry) for entries in lists for entry in entries if isinstance(entry, (str, Path))}
    return [
        tuple(named[str(entry)] if isinstance(entry, (str, Path)) else as_use(entry) for entry in entries)
        for entries in lists
    ]


def composed(
    backbone: Backbone, rows: Sequence[PromptRow], options: TextOptions, cache: EncodingCache | None = None
) -> Composed:
    """Rows of one batch made ready for a pipeline call; ``cache`` keeps encoded texts between calls."""
    parameters = inspect.signature(backbone.pipe.__call__).parameters
    if "cross_attention_kwargs" not in parameters:
        raise TaraError(
            f"A {type(backbone.pipe).__name__} call takes no cross_attention_kwargs. Use a stock text-to-image, "
            "image-to-image, inpainting or ControlNet pipeline."
        )
    guidance = options.guidance_scale
    guidance = float(parameters["guidance_scale"].default) if guidance is None else guidance
    guided = _guided(backbone, guidance)
    _warn_of_lost_text(backbone, rows, guided)
    texts = _Texts(backbone, {} if cache is None else cache)
    members = zip(*(row.members for row in rows), strict=True)
    found = [_evaluation(texts, rows, member, options, guided) for member in members]
    arguments = {
        **found[0][0],
        "guidance_scale": guidance,
        "num_images_per_prompt": options.num_images_per_prompt,
        "cross_attention_kwargs": {KEY: found[0][1].conditioning},
    }
    return Composed(arguments, tuple(evaluation for _, evaluation in found), options.composed_by.turn)


def _warn_of_lost_text(backbone: Backbone, rows: Sequence[PromptRow], guided: bool) -> None:
    for text in dict.fromkeys(row.text for row in rows):
        warn_if_cut(backbone.tokenize(text))
    for text in dict.fromkeys(row.negative or "" for row in rows) if guided else ():
        warn_if_cut(backbone.tokenize(text), "negative prompt")


def _guided(backbone: Backbone, guidance_scale: float) -> bool:
    # as in the stock pipelines' do_classifier_free_guidance
    return guidance_scale > 1 and backbone.unet.config.time_cond_proj_dim is None


def _evaluation(
    texts: "_Texts", rows: Sequence[PromptRow], members: Sequence[Uses], options: TextOptions, guided: bool
) -> tuple[dict[str, Any], Evaluation]:
    """What the pipeline is given as embeddings, and what the U-Net sees, when each row has one member's adapters."""
    everywhere = options.composed_by.everywhere
    # plain LoRAs are in the encoders for all of a row's text; else an adapter reads its own word there, alone
    shared = members if everywhere else [()] * len(rows)
    paired = list(zip(rows, shared, strict=True))
    positive = TextEncoding.join([texts.positive(row.text, options.clip_skip, uses) for row, uses in paired])
    negative = TextEncoding.join([texts.negative(row.negative, uses) for row, uses in paired]) if guided else None
    bound = bind_everywhere if everywhere else bind
    bindings = [bound(tokenized, uses) for tokenized, uses in zip(positive.tokenized, members, strict=True)]
    encoding, of_rows = _batch(positive, negative, bindings, options)
    conditioning = text_kv(texts.backbone, encoding, of_rows, options.context, texts.positive, options.clip_skip)
    embeddings = {**_embeddings(positive, ""), **({} if negative is None else _embeddings(negative, "negative_"))}
    return embeddings, Evaluation(members[0], conditioning, encoding.pooled)


def _batch(
    positive: TextEncoding, negative: TextEncoding | None, bindings: list[list[Binding]], options: TextOptions
) -> tuple[TextEncoding, list[list[Binding]]]:
    """Rows as the stock pipelines order them, ``[unconditional..., conditional...]``, each prompt's copies together."""
    copies = [row for row in range(positive.rows) for _ in range(options.num_images_per_prompt)]
    conditional = [bindings[row] for row in copies]
    if negative is None:
        return positive.take(copies), conditional
    unconditional = conditional if options.composed_by.everywhere else [[] for _ in copies]
    return TextEncoding.join([negative.take(copies), positive.take(copies)]), [*unconditional, *conditional]


def _embeddings(encoding: TextEncoding, prefix: str) -> dict[str, Any]:
    pooled = {} if encoding.pooled is None else {f"{prefix}pooled_prompt_embeds": encoding.pooled}
    return {f"{prefix}prompt_embeds": encoding.embeddings, **pooled}


class _Texts:
    """Encoded texts, each encoded once."""

    def __init__(self, backbone: Backbone, cache: EncodingCache) -> None:
        self.backbone = backbone
        self.cache = cache

    def positive(self, text: str, clip_skip: int | None, uses: Sequence[AdapterUse]) -> TextEncoding:
        return self._kept(text, clip_skip, negative=False, uses=uses)

    def negative(self, text: str | None, uses: Sequence[AdapterUse]) -> TextEncoding:
        return self._kept(text, None, negative=True, uses=uses)

    def _kept(
        self, text: str | None, clip_skip: int | None, negative: bool, uses: Sequence[AdapterUse]
    ) -> TextEncoding:
        uses = [use for use in uses if use.adapter.text_layers and use.weight]
        # adapters themselves, not their ids: an id may be given to another one as soon as the first is gone
        key = text, clip_skip, negative, tuple((use.adapter, use.weight) for use in uses)
        if key not in self.cache:
            if len(self.cache) >= CACHED_TEXTS:
                self.cache.clear()
            base = self.backbone
            with fused_text(base, uses):
                self.cache[key] = base.encode_negative(text) if negative else base.encode([text or ""], clip_skip)
        return self.cache[key]
