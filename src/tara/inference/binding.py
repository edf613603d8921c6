"""Which tokens of a prompt each adapter acts on."""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tara.adapters.adapter import Adapter, load_adapter
from tara.core.tokens import Span, Tokenized, class_word_of, word_spans
from tara.errors import TaraError, TaraWarning, nearest

OPTIONS = ("weight", "rare_word", "class_word", "global", "alpha")
MOST_NUMBER = 1e6


@dataclass(frozen=True, eq=False)
class ActiveAdapter:
    """An adapter as one image uses it.

    ``weight`` scales all of it, ``global_weight`` its global part once more; ``rare_word`` and ``class_word`` are the
    card's unless others are given.
    """

    adapter: Adapter
    weight: float = 1.0
    rare_word: str = ""
    class_word: str = ""
    global_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rare_word", "class_word"):
            if not getattr(self, name):
                object.__setattr__(self, name, getattr(self.adapter.card, name))

    @property
    def name(self) -> str:
        return self.adapter.name

    @property
    def global_strength(self) -> float:
        """The factor of the global part, 0 when there is none."""
        return self.weight * self.global_weight if self.adapter.global_part else 0.0

    @property
    def order(self) -> tuple[str, str, str, float]:
        """A fixed order of summation makes adapters commute to the last bit."""
        return self.rare_word, self.class_word, self.name, self.weight


ActiveAdapters = tuple[ActiveAdapter, ...]
AdapterLike = str | Path | Adapter | ActiveAdapter
"""A file, a hub id, either with ``:key=value,...`` behind it, a loaded adapter, or one with options."""

AdapterLists = Sequence[AdapterLike] | Sequence[Sequence[AdapterLike]]
"""One list of adapters for all prompts, or one list for each prompt."""


def split_options(text: str) -> tuple[str, str]:
    """``FILE:0.8`` to ``FILE`` and ``0.8``: an existing path wins, otherwise the last colon splits."""
    name, colon, options = text.rpartition(":")
    return (name, options) if colon and not Path(text).exists() else (text, "")


def parse_adapter(text: str) -> ActiveAdapter:
    """Load ``FILE[:key=value,...]``: keys weight, rare_word, class_word, global, alpha; ``FILE:0.8`` is a weight.

    Raises:
        TaraError: for an unknown key, a value that is no number, or a file that `load_adapter` refuses.
    """
    path, options = split_options(text)
    given: dict[str, str] = {}
    for option in filter(None, (part.strip() for part in options.split(","))):
        key, equals, value = option.partition("=")
        key, value = (key.strip(), value.strip()) if equals else ("weight", key.strip())
        if key not in OPTIONS:
            raise TaraError(f"'{text}' has an unknown key '{key}'.{nearest(key, OPTIONS)} Known: {', '.join(OPTIONS)}.")
        if not value:
            raise TaraError(f"'{text}': {key} is empty. Write a value behind '{key}=', or leave it out.")
        given[key] = value
    alpha = _number(text, "alpha", given["alpha"]) if "alpha" in given else None
    return ActiveAdapter(
        load_adapter(path, alpha),
        weight=_number(text, "weight", given.get("weight", "1")),
        rare_word=given.get("rare_word", ""),
        class_word=given.get("class_word", ""),
        global_weight=_number(text, "global", given.get("global", "1")),
    )


def _number(text: str, key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not abs(number) <= MOST_NUMBER:
        raise TaraError(f"'{text}': {key} is '{value}', not a usable number. Write for instance {key}=0.8.")
    return number


def as_active_adapter(adapter: AdapterLike) -> ActiveAdapter:
    """An adapter in any of its forms, loaded and with its options."""
    if isinstance(adapter, ActiveAdapter):
        return adapter
    if isinstance(adapter, Adapter):
        return ActiveAdapter(adapter)
    return parse_adapter(str(adapter))


def check_named(adapters: Iterable[ActiveAdapter]) -> None:
    """Refuse (TaraError) an adapter of which nobody has said what rare word it acts on."""
    for active in adapters:
        if not active.rare_word:
            raise TaraError(
                f"{active.name} has no adapter card: it is another tool's LoRA, and nobody has said which word it acts "
                f"on. Add the rare word and the class word: {active.name}:rare_word=xlo,class_word=dog."
            )


@dataclass(frozen=True, eq=False)
class Binding:
    """The tokens of one prompt that one adapter acts on: positions of each occurrence of its rare word."""

    active: ActiveAdapter
    occurrences: tuple[tuple[int, ...], ...]
    everywhere: bool = False


def bind(prompt: Tokenized, adapters: Iterable[ActiveAdapter]) -> list[Binding]:
    """Find each adapter's rare word; adapters that share one are told apart by the class word that follows it.

    Where one adapter's word is a part of a longer one's, the longer word wins.

    Raises:
        TaraError: when an adapter's word is unknown, missing, ambiguous, or behind the last token that fits.
    """
    bindings: list[Binding] = []
    for active, spans in find_words(prompt.text, adapters):
        for span in spans:
            _check_kept(prompt, span, active)
        bindings.append(Binding(active, tuple(prompt.positions(span) for span in spans)))
    return bindings


def find_words(prompt: str, adapters: Iterable[ActiveAdapter]) -> list[tuple[ActiveAdapter, list[Span]]]:
    """Where each adapter's rare word stands in a prompt, which needs no tokenizer and so no base.

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


def _own_spans(text: str, active: ActiveAdapter, adapters: Sequence[ActiveAdapter]) -> list[Span]:
    """Where the adapter's rare word stands, except inside a longer one of another adapter."""
    longer = [
        span
        for other in adapters
        if len(other.rare_word) > len(active.rare_word)
        for span in word_spans(text, other.rare_word)
    ]
    spans = word_spans(text, active.rare_word)
    return [span for span in spans if not any(start <= span[0] and span[1] <= end for start, end in longer)]


def bind_everywhere(prompt: Tokenized, adapters: Iterable[ActiveAdapter]) -> list[Binding]:
    """Let each adapter act on every token, as summed plain LoRAs do."""
    return [Binding(active, (tuple(range(len(prompt.offsets))),), everywhere=True) for active in adapters]


def warn_if_cut(prompt: Tokenized, what: str = "prompt") -> None:
    """Warn about the end of a text that did not fit the text encoder, and name it."""
    if prompt.lost:
        warnings.warn(
            f"The {what} is longer than {len(prompt.offsets)} tokens; this end of it is lost: '{prompt.lost}'. "
            f"Shorten the {what}.",
            TaraWarning,
            stacklevel=2,
        )


def _same(one: str, other: str) -> bool:
    return one.casefold().split() == other.casefold().split()


def _owner(text: str, span: Span, rivals: Sequence[ActiveAdapter]) -> ActiveAdapter:
    """Whose class word follows this occurrence first (before the next one); the longer word wins."""
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
        write = f"Write {words}, or rebind" if words else "Rebind"
        raise TaraError(
            f"'{rivals[0].rare_word}' in the prompt '{text}' could mean {names}. {write} one adapter: "
            f"{rivals[-1].name}:rare_word=NEW."
        )
    first = min(candidates)
    if sum(entry[:2] == first[:2] for entry in candidates) > 1:
        raise TaraError(f"{names} act on the same words {words}. Rebind one: {rivals[-1].name}:rare_word=NEW.")
    return rivals[first[2]]


def _check_kept(prompt: Tokenized, span: Span, active: ActiveAdapter) -> None:
    of_class = class_word_of(prompt.text, span, active.class_word)
    for word, place in ((active.rare_word, span), (active.class_word, of_class)):
        if place is not None and not prompt.holds(place):
            raise TaraError(
                f"'{word}', which {active.name} acts on, lies behind the last of {len(prompt.offsets)} tokens: "
                f"'{prompt.lost}' is lost. Shorten the prompt."
            )
