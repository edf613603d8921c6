"""Binds adapters to the tokens of a prompt on which they act."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tara.core.tokens import Span, Tokenized, class_word_of, word_spans
from tara.errors import TaraError, warn
from tara.inference.active_adapter import ActiveAdapter, check_named


@dataclass(frozen=True, eq=False)
class Binding:
    """The tokens of one prompt on which one adapter acts: for each occurrence of its rare word, the token positions."""

    active: ActiveAdapter
    occurrences: tuple[tuple[int, ...], ...]
    unmasked: bool = False


def bind(prompt: Tokenized, adapters: Iterable[ActiveAdapter]) -> list[Binding]:
    """Find the tokens of each adapter's rare word.

    Adapters with the same rare word are distinguished by the class word that follows it. If one adapter's rare word is
    part of another adapter's longer rare word, the longer word wins.

    Raises:
        TaraError: when an adapter's word is unknown, missing or ambiguous.
    """
    bindings: list[Binding] = []
    for active, spans in find_words(prompt.text, adapters):
        bindings.append(Binding(active, tuple(prompt.positions(span) for span in spans)))
    return bindings


def find_words(prompt: str, adapters: Iterable[ActiveAdapter]) -> list[tuple[ActiveAdapter, list[Span]]]:
    """Find the character spans of each adapter's rare word in a prompt. Needs no tokenizer and no base.

    Raises:
        TaraError: when an adapter's word is unknown, missing or ambiguous.
    """
    located: list[tuple[ActiveAdapter, list[Span]]] = []
    adapters = list(adapters)
    check_named(adapters)
    for active in adapters:
        rivals = [other for other in adapters if _same(other.rare_word, active.rare_word)]
        spans = _own_spans(prompt, active, adapters)
        if len(rivals) > 1:
            spans = [span for span in spans if _owner(prompt, span, rivals) is active]
        if not spans:
            words = f"{active.rare_word} {active.class_word}" if len(rivals) > 1 else active.rare_word
            raise TaraError(
                f"'{words}' is not in the prompt '{prompt}'. {active.name} acts on '{words}'. Add it, or leave the "
                "adapter out."
            )
        located.append((active, spans))
    return located


def class_tokens(prompt: Tokenized, binding: Binding) -> tuple[int, ...]:
    """The tokens of the class words that belong to a rare word. If there is none, warn and return the rare word's."""
    tokens: dict[int, None] = {}
    for occurrence in binding.occurrences:
        rare = prompt.offsets[occurrence[0]][0], prompt.offsets[occurrence[-1]][1]
        span = class_word_of(prompt.text, rare, binding.active.class_word)
        tokens |= dict.fromkeys(() if span is None else prompt.positions(span))
    if tokens:
        return tuple(tokens)
    active = binding.active
    words = f"{active.rare_word} {active.class_word or 'dog'}"
    warn(
        f"The region of {active.name} is found by its class word '{active.class_word}', which is not in the prompt "
        f"'{prompt.text}'; '{active.rare_word}' is used instead. Write '{words}'."
    )
    return tuple(token for occurrence in binding.occurrences for token in occurrence)


def _own_spans(text: str, active: ActiveAdapter, adapters: Sequence[ActiveAdapter]) -> list[Span]:
    """Spans of the adapter's rare word, except inside a longer rare word of another adapter."""
    longer = [
        span
        for other in adapters
        if len(other.rare_word) > len(active.rare_word)
        for span in word_spans(text, other.rare_word)
    ]
    spans = word_spans(text, active.rare_word)
    return [span for span in spans if not any(start <= span[0] and span[1] <= end for start, end in longer)]


def bind_all_tokens(prompt: Tokenized, adapters: Iterable[ActiveAdapter]) -> list[Binding]:
    """Bind each adapter to every token, as plain LoRAs act."""
    return [Binding(active, (tuple(range(len(prompt.offsets))),), unmasked=True) for active in adapters]


def _same(one: str, other: str) -> bool:
    return one.casefold().split() == other.casefold().split()


def _owner(text: str, span: Span, rivals: Sequence[ActiveAdapter]) -> ActiveAdapter:
    """The adapter whose class word comes first between this occurrence and the next. On a tie, the longer word wins."""
    later = [start for start, _ in word_spans(text, rivals[0].rare_word) if start >= span[1]]
    following = text[span[1] : min(later, default=len(text))]
    candidates = [
        (start, -end, number)
        for number, active in enumerate(rivals)
        for start, end in word_spans(following, active.class_word)
    ]
    words = " or ".join(
        dict.fromkeys(f"'{active.rare_word} {active.class_word}'" for active in rivals if active.class_word)
    )
    names = " and ".join(active.name for active in rivals)
    if not candidates:
        write = f"Write {words}, or give" if words else "Give"
        raise TaraError(
            f"'{rivals[0].rare_word}' in the prompt '{text}' could mean {names}. {write} one adapter another rare "
            f"word: {rivals[-1].name}:rare_word=NEW."
        )
    first = min(candidates)
    if sum(entry[:2] == first[:2] for entry in candidates) > 1:
        if len({active.name for active in rivals}) == 1:
            name = rivals[0].name
            raise TaraError(
                f"{name} is given twice. Leave one out, or give it another rare word: {name}:rare_word=NEW."
            )
        raise TaraError(
            f"{names} act on the same words {words}. Give one another rare word: {rivals[-1].name}:rare_word=NEW."
        )
    return rivals[first[2]]
