"""Generates images and records the attention maps of their rare words and class words."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from tara.analysis.recording import Recorder, WordMaps, recording
from tara.core.attention_maps import map_correlation, overlap
from tara.core.tokens import Span, Tokenized, class_word_of
from tara.errors import TaraError
from tara.families.prompt_encoding import tokenize_prompt
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.binding import bind, find_words
from tara.inference.pipeline import GeneratedImage, OnStep, Pipeline
from tara.inference.request import GenerationRequest


@dataclass(frozen=True, eq=False)
class SubjectTokens:
    """An adapter in a prompt: the tokens of its rare word and of the class words that belong to it."""

    active: ActiveAdapter
    rare_positions: tuple[int, ...]
    class_positions: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class AttentionScores:
    """A subject's rare word compared with class words, by their attention maps; see `tara.core.attention_maps`."""

    map_correlation: float
    """Of the rare word's map with that of its class word."""
    overlap: float
    other_correlation: float | None
    """The highest with another subject's class word; None when there is no other subject."""


@dataclass(frozen=True, eq=False)
class ImageAttention:
    """An image, the subjects of its prompt, and the maps of their words: rare, class, rare, class, ..."""

    generated: GeneratedImage
    subjects: tuple[SubjectTokens, ...]
    maps: WordMaps

    @cached_property
    def scores(self) -> list[AttentionScores]:
        """The scores of each subject, from the mean map over heads, layers and steps."""
        return scores_of(self.maps.mean)


def record_attention(
    pipeline: Pipeline, request: GenerationRequest, on_step: OnStep | None = None
) -> list[ImageAttention]:
    """Generate a request's images in one batch and record where its adapters' words attend.

    The images are bit-identical to those of ``pipeline.generate`` with the same batch.

    Raises:
        TaraError: as `Pipeline.generate` and `check_words`.
    """
    check_words(request)
    subjects = subjects_of(tokenize_prompt(pipeline.base, request.prompt).tokenized, request.adapters)
    count = len(request.seeds)
    recorder = Recorder(
        [tokens for subject in subjects for tokens in (subject.rare_positions, subject.class_positions)], count
    )
    with recording(pipeline.base, recorder):
        images = list(pipeline.generate([request], batch_size=count, on_step=on_step))
    return [ImageAttention(image, subjects, maps) for image, maps in zip(images, recorder.maps(), strict=True)]


def check_words(request: GenerationRequest) -> None:
    """Check, without a base, that a request's rare and class words can be compared.

    Raises:
        TaraError: when there is no adapter, a word is unknown, missing or ambiguous, or the composer is ``none``.
    """
    if not request.adapters:
        raise TaraError(
            "There are no adapters, so there are no words to map. Give at least one: --adapter rex.safetensors."
        )
    for active, spans in find_words(request.prompt, request.adapters):
        for span in spans:
            _class_word(request.prompt, span, active)
    if request.settings.composer_for(request.adapters).prompt(request.prompt, request.adapters) != request.prompt:
        raise TaraError(f"The composer '{request.settings.composer}' uses no rare words. Choose another composer.")


def subjects_of(prompt: Tokenized, adapters: Sequence[ActiveAdapter]) -> tuple[SubjectTokens, ...]:
    """Find each adapter's rare word and, for each of its occurrences, the class word that belongs to it.

    Raises:
        TaraError: when a word is unknown, missing, ambiguous or cut off.
    """
    subjects: list[SubjectTokens] = []
    for binding in bind(prompt, adapters):
        class_tokens: list[int] = []
        for tokens in binding.occurrences:
            rare = prompt.offsets[tokens[0]][0], prompt.offsets[tokens[-1]][1]
            class_tokens += prompt.positions(_class_word(prompt.text, rare, binding.active))
        rare_tokens = tuple(token for tokens in binding.occurrences for token in tokens)
        subjects.append(SubjectTokens(binding.active, rare_tokens, tuple(dict.fromkeys(class_tokens))))
    return tuple(subjects)


def _class_word(prompt: str, rare: Span, active: ActiveAdapter) -> Span:
    if not active.class_word:
        raise TaraError(f"{active.name} has no class word to compare with. Add :class_word=dog.")
    span = class_word_of(prompt, rare, active.class_word)
    if span is None:
        raise TaraError(
            f"'{active.class_word}' is not in the prompt '{prompt}', but the rare word's map is compared with that of "
            f"its class word. Write '{active.rare_word} {active.class_word}'."
        )
    return span


def rows_of_alternatives(adapters: Sequence[ActiveAdapter]) -> list[tuple[int, ...]]:
    """Rows of adapters, by index. Adapters with the same rare word and class word are alternatives.

    Each row has one of the alternatives; an adapter without alternatives is in every row.

    Raises:
        TaraError: when two subjects have different numbers of alternatives.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for number, active in enumerate(adapters):
        groups.setdefault((active.rare_word.casefold(), active.class_word.casefold()), []).append(number)
    rows = max((len(group) for group in groups.values()), default=0)
    for (rare_word, class_word), group in groups.items():
        if len(group) not in (1, rows):
            names = ", ".join(adapters[number].name for number in group)
            raise TaraError(
                f"'{rare_word} {class_word}' has {len(group)} adapters ({names}), another subject has {rows}. Give one "
                "adapter per subject, or the same number for each subject."
            )
    return [tuple(group[row % len(group)] for group in groups.values()) for row in range(rows)]


def scores_of(maps: Float[Tensor, "words height width"]) -> list[AttentionScores]:
    """The scores of each subject; ``maps`` holds rare, class, rare, class, ..."""
    rare, classes = maps[0::2], maps[1::2]
    scores: list[AttentionScores] = []
    for subject, own in enumerate(rare):
        others = [map_correlation(own, other) for other in classes]
        correlation = others.pop(subject)
        scores.append(
            AttentionScores(
                map_correlation=correlation,
                overlap=overlap(own, classes[subject]),
                other_correlation=max(others, default=None),
            )
        )
    return scores
