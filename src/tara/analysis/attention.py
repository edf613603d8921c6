"""Prompt, adapters and seeds to pictures with the attention of their rare and class words."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tara.analysis.recording import Recorder, WordMaps, recording
from tara.core.attention_maps import alignment, overlap
from tara.core.tokens import Span, Tokenized, word_spans
from tara.errors import TaraError
from tara.inference.binding import ActiveAdapter, AdapterLike, Binding, as_active_adapter, bind
from tara.inference.composers import Composer, composer_named
from tara.inference.pipeline import Generated, Pipeline, SamplingStep


@dataclass(frozen=True, eq=False)
class Subject:
    """An adapter in a prompt: the tokens of its rare word and of the class words that belong to it."""

    active: ActiveAdapter
    rare: tuple[int, ...]
    kind: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How a subject's rare word lies on class words.

    ``alignment`` and ``overlap`` compare it with its own, see `tara.core.attention_maps`; ``astray`` is its highest
    alignment with another subject's class word, None when there is no other subject.
    """

    alignment: float
    overlap: float
    leakage_score: float | None


@dataclass(frozen=True, eq=False)
class Attended:
    """A picture, the subjects of its prompt, and the maps of their words: rare, class, rare, class, ..."""

    picture: Generated
    subjects: tuple[Subject, ...]
    maps: WordMaps

    @cached_property
    def scores(self) -> list[Scores]:
        """Of each subject, from the mean over heads, layers and steps."""
        return score(self.maps.mean)

    @cached_property
    def layer_scores(self) -> dict[str, list[Scores]]:
        """By layer: of each subject, from the mean over heads and steps."""
        return {layer: score(maps) for layer, maps in self.maps.layers.items()}

    @cached_property
    def step_scores(self) -> list[list[Scores]]:
        """By U-Net call: of each subject, from the mean over heads and layers."""
        return [score(maps) for maps in self.maps.steps]


def attend(
    pipeline: Pipeline,
    prompt: str,
    adapters: Sequence[AdapterLike],
    seeds: Iterable[int] = (0,),
    *,
    on_step: Callable[[SamplingStep], object] | None = None,
    **settings: Any,
) -> list[Attended]:
    """Draw a prompt with each seed, in one batch, and record where its adapters' words attend.

    The pictures are those that ``studio(prompt, adapters, seeds)`` draws in such a batch, to the last bit.

    Args:
        studio: the base.
        prompt: holds each adapter's rare word and its class word.
        adapters: at least one.
        seeds: one picture each.
        on_step: called after each denoising step.
        settings: fields of `tara.inference.stock_pipelines.SamplingSettings` but ``batch_size``.

    Raises:
        TaraError: as `Studio.stream`, and when a rare or class word is not in the prompt or is not drawn.
    """
    active_adapters, seeds = [as_active_adapter(adapter) for adapter in adapters], tuple(seeds)
    check_rare_words_are_drawn(prompt, active_adapters, settings.get("composer", "tara"))
    subjects = subjects_of(pipeline.base.tokenize(prompt), active_adapters)
    recorder = Recorder([tokens for one in subjects for tokens in (one.rare, one.class_word)], len(seeds))
    with recording(pipeline.base.unet, recorder):
        drawn = list(
            pipeline.stream(prompt, active_adapters, seeds, batch_size=len(seeds), on_step=on_step, **settings)
        )
    return [Attended(picture, subjects, maps) for picture, maps in zip(drawn, recorder.maps(), strict=True)]


def subjects_of(prompt: Tokenized, active_adapters: Sequence[ActiveAdapter]) -> tuple[Subject, ...]:
    """Find each adapter's rare word and, for each time that it stands there, the class word that follows it.

    Raises:
        TaraError: when there is no adapter, or a word is missing, ambiguous or cut off.
    """
    if not active_adapters:
        raise TaraError("There is no adapter whose words could be looked at. Give at least one.")
    return tuple(
        Subject(
            binding.active,
            rare=tuple(position for occurrence in binding.occurrences for position in occurrence),
            class_word=_class_tokens(prompt, binding),
        )
        for binding in bind(prompt, active_adapters)
    )


def check_rare_words_are_drawn(prompt: str, active_adapters: Sequence[ActiveAdapter], composer: str | Composer) -> None:
    """Refuse a composer that changes the prompt: where a rare word would be, another stands.

    Raises:
        TaraError: for such a composer, as ``none``.
    """
    if composer_named(composer).prompt(prompt, tuple(active_adapters)) != prompt:
        raise TaraError(f"The composer '{composer}' draws no rare words that could be looked at. Choose another one.")


def class_spans(prompt: str, active: ActiveAdapter) -> list[Span]:
    """Where an adapter's class word stands in a prompt, which needs no tokenizer and so no base.

    Raises:
        TaraError: when it is unknown or missing.
    """
    if not active.class_word:
        raise TaraError(
            f"{active.name} does not know what it is, so there is no class word to look at. Add :class_word=dog."
        )
    spans = word_spans(prompt, active.class_word)
    if not spans:
        raise TaraError(
            f"'{active.class_word}' is not in the prompt '{prompt}', but a rare word is compared with its class word. "
            f"Write '{active.rare_word} {active.class_word}'."
        )
    return spans


def _class_tokens(prompt: Tokenized, binding: Binding) -> tuple[int, ...]:
    spans = class_spans(prompt.text, binding.active)
    found: list[int] = []
    for occurrence in binding.occurrences:
        end = prompt.offsets[occurrence[-1]][1]
        following = [span for span in spans if span[0] >= end] or spans
        found += prompt.positions(following[0])
    return tuple(dict.fromkeys(found))


def side_by_side(active_adapters: Sequence[ActiveAdapter]) -> list[tuple[ActiveAdapter, ...]]:
    """What is drawn together and what beside it: adapters of the same two words are alternatives.

    Each alternative is in a row of its own; an adapter that has none is in every row.

    Raises:
        TaraError: when two words have different numbers of alternatives.
    """
    groups: dict[tuple[str, str], list[ActiveAdapter]] = {}
    for active in active_adapters:
        groups.setdefault((active.rare_word.casefold(), active.class_word.casefold()), []).append(active)
    rows = max((len(group) for group in groups.values()), default=0)
    for group in groups.values():
        if len(group) not in (1, rows):
            names = ", ".join(active.name for active in group)
            raise TaraError(
                f"'{group[0].rare_word} {group[0].class_word}' has {len(group)} adapters ({names}), another subject "
                f"has {rows}. Give one adapter for each subject, or as many for each."
            )
    return [tuple(group[row % len(group)] for group in groups.values()) for row in range(rows)]


def score(maps: Float[Tensor, "words height width"]) -> list[Scores]:
    """The scores of each subject; ``maps`` holds rare, class, rare, class..."""
    rare, kinds = maps[0::2], maps[1::2]
    found: list[Scores] = []
    for subject, own in enumerate(rare):
        others = [alignment(own, kind) for other, kind in enumerate(kinds) if other != subject]
        kind = kinds[subject]
        found.append(
            Scores(alignment=alignment(own, kind), overlap=overlap(own, kind), leakage_score=max(others, default=None))
        )
    return found
