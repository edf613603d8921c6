"""Which tokens of a prompt each adapter listens to."""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tara.adapters.adapter import Adapter, load_adapter
from tara.core.tokens import Span, Tokenized, word_spans
from tara.errors import TaraError, TaraWarning, nearest

OPTIONS = ("weight", "word", "kind", "global", "alpha")
MOST_NUMBER = 1e6


@dataclass(frozen=True, eq=False)
class AdapterUse:
    """An adapter as one picture uses it.

    ``weight`` scales all of it, ``global_weight`` its global part once more; ``word`` and ``kind`` rebind it to other
    words than its card's.
    """

    adapter: Adapter
    weight: float = 1.0
    word: str | None = None
    kind: str | None = None
    global_weight: float = 1.0

    @property
    def name(self) -> str:
        return self.adapter.name

    @property
    def rare_word(self) -> str:
        return self.word or self.adapter.card.rare_word

    @property
    def class_word(self) -> str:
        return self.kind or self.adapter.card.class_word

    @property
    def global_strength(self) -> float:
        """The factor of the global part, 0 when there is none."""
        return self.weight * self.global_weight if self.adapter.global_part else 0.0

    @property
    def order(self) -> tuple[str, str, str, float]:
        """A fixed order of summation makes adapters commute to the last bit."""
        return self.rare_word, self.class_word, self.name, self.weight


AdapterLike = str | Path | Adapter | AdapterUse
"""A file, a hub id, either with ``:key=value,...`` behind it, a loaded adapter, or one with options."""

AdapterLists = Sequence[AdapterLike] | Sequence[Sequence[AdapterLike]]
"""One list of adapters for all prompts, or one list for each prompt."""


def split_options(text: str) -> tuple[str, str]:
    """``FILE:0.8`` to ``FILE`` and ``0.8``: an existing path wins, otherwise the last colon splits."""
    name, colon, options = text.rpartition(":")
    return (name, options) if colon and not Path(text).exists() else (text, "")


def parse_use(text: str) -> AdapterUse:
    """Load ``FILE[:key=value,...]``: keys weight, word, kind, global, alpha; ``FILE:0.8`` means weight=0.8.

    Raises:
        TaraError: for an unknown key, a value that is no number, or a file that :func:`load_adapter` refuses.
    """
    path, options = split_options(text)
    found: dict[str, str] = {}
    for option in filter(None, (part.strip() for part in options.split(","))):
        key, equals, value = option.partition("=")
        key, value = (key.strip(), value.strip()) if equals else ("weight", key.strip())
        if key not in OPTIONS:
            raise TaraError(f"'{text}' has an unknown key '{key}'.{nearest(key, OPTIONS)} Known: {', '.join(OPTIONS)}.")
        if not value:
            raise TaraError(f"'{text}': {key} is empty. Write a value behind '{key}=', or leave it out.")
        found[key] = value
    alpha = _number(text, "alpha", found["alpha"]) if "alpha" in found else None
    return AdapterUse(
        load_adapter(path, alpha),
        weight=_number(text, "weight", found.get("weight", "1")),
        word=found.get("word"),
        kind=found.get("kind"),
        global_weight=_number(text, "global", found.get("global", "1")),
    )


def _number(text: str, key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not abs(number) <= MOST_NUMBER:
        raise TaraError(f"'{text}': {key} is '{value}', not a number of use. Write for instance {key}=0.8.")
    return number


def as_use(adapter: AdapterLike) -> AdapterUse:
    """Whatever names an adapter, loaded and with its options."""
    if isinstance(adapter, AdapterUse):
        return adapter
    if isinstance(adapter, Adapter):
        return AdapterUse(adapter)
    return parse_use(str(adapter))


def check_named(uses: Iterable[AdapterUse]) -> None:
    """Refuse an adapter of which nobody has said what word it listens to.

    Raises:
        TaraError: saying how to.
    """
    for use in uses:
        if not use.rare_word:
            raise TaraError(
                f"{use.name} has no adapter card: it is another tool's LoRA, and nobody has said which word it listens "
                f"to. Add the word and what it is: {use.name}:word=xlo,kind=dog."
            )


@dataclass(frozen=True, eq=False)
class Binding:
    """The tokens of one prompt that one adapter acts on: positions of each occurrence of its rare word."""

    use: AdapterUse
    occurrences: tuple[tuple[int, ...], ...]
    everywhere: bool = False


def bind(prompt: Tokenized, uses: Iterable[AdapterUse]) -> list[Binding]:
    """Find each adapter's rare word; adapters that share one are told apart by the class word that follows it.

    Where one adapter's word is the beginning or another part of a longer one's, the longer word wins.

    Raises:
        TaraError: when an adapter's word is unknown, missing, ambiguous, or behind the last token that fits.
    """
    bindings: list[Binding] = []
    for use, spans in find_words(prompt.text, uses):
        for span in spans:
            _check_kept(prompt, span, use)
        bindings.append(Binding(use, tuple(prompt.positions(span) for span in spans)))
    return bindings


def find_words(prompt: str, uses: Iterable[AdapterUse]) -> list[tuple[AdapterUse, list[Span]]]:
    """Where each adapter's rare word stands in a prompt, which needs no tokenizer and so no base.

    Raises:
        TaraError: when an adapter's word is unknown, missing or ambiguous.
    """
    found: list[tuple[AdapterUse, list[Span]]] = []
    uses = list(uses)
    check_named(uses)
    for use in uses:
        rivals = [other for other in uses if _same(other.rare_word, use.rare_word)]
        spans = _own_spans(prompt, use, uses)
        if len(rivals) > 1:
            spans = [span for span in spans if _owner(prompt, span, rivals) is use]
        if not spans:
            raise _missing(prompt, use, shared=len(rivals) > 1)
        found.append((use, spans))
    return found


def _own_spans(text: str, use: AdapterUse, uses: Sequence[AdapterUse]) -> list[Span]:
    """Where the adapter's rare word stands, except inside a longer one of another adapter."""
    longer = [
        span
        for other in uses
        if len(other.rare_word) > len(use.rare_word)
        for span in word_spans(text, other.rare_word)
    ]
    spans = word_spans(text, use.rare_word)
    return [span for span in spans if not any(start <= span[0] and span[1] <= end for start, end in longer)]


def bind_everywhere(prompt: Tokenized, uses: Iterable[AdapterUse]) -> list[Binding]:
    """Let each adapter act on every token, as summed plain LoRAs do."""
    return [Binding(use, (tuple(range(len(prompt.offsets))),), everywhere=True) for use in uses]


def warn_if_cut(prompt: Tokenized, what: str = "prompt") -> None:
    """Warn about the end of a prompt, or of whatever else was read, that did not fit, and name it."""
    if prompt.lost:
        warnings.warn(
            f"The {what} is longer than {len(prompt.offsets)} tokens; this end of it is lost: '{prompt.lost}'. "
            f"Shorten the {what}.",
            TaraWarning,
            stacklevel=2,
        )


def _same(one: str, other: str) -> bool:
    return one.casefold().split() == other.casefold().split()


def _owner(text: str, span: Span, rivals: Sequence[AdapterUse]) -> AdapterUse:
    """Whose class word follows this occurrence first (before the next one); the longer word wins."""
    later = [start for start, _ in word_spans(text, rivals[0].rare_word) if start >= span[1]]
    following = text[span[1] : min(later, default=len(text))]
    found = [
        (start, -end, number)
        for number, use in enumerate(rivals)
        for start, end in word_spans(following, use.class_word)
    ]
    words = " or ".join(dict.fromkeys(f"'{use.rare_word} {use.class_word}'" for use in rivals if use.class_word))
    names = " and ".join(use.name for use in rivals)
    if not found:
        write = f"Write {words}, or rebind" if words else "Rebind"
        raise TaraError(
            f"'{rivals[0].rare_word}' in the prompt '{text}' could mean {names}. {write} one adapter: "
            f"{rivals[-1].name}:word=NEW."
        )
    first = min(found)
    if sum(entry[:2] == first[:2] for entry in found) > 1:
        raise TaraError(f"{names} listen to the same words {words}. Rebind one: {rivals[-1].name}:word=NEW.")
    return rivals[first[2]]


def _missing(text: str, use: AdapterUse, shared: bool) -> TaraError:
    words = f"{use.rare_word} {use.class_word}" if shared else use.rare_word
    return TaraError(
        f"'{words}' is not in the prompt '{text}'. {use.name} listens to '{words}'. Add it, or leave the adapter out."
    )


def _check_kept(prompt: Tokenized, span: Span, use: AdapterUse) -> None:
    kinds = word_spans(prompt.text, use.class_word)
    following = [kind for kind in kinds if kind[0] >= span[1]] or kinds
    for word, place in ((use.rare_word, span), *((use.class_word, kind) for kind in following[:1])):
        if not prompt.holds(place):
            raise TaraError(
                f"'{word}', which {use.name} listens to, lies behind the last of {len(prompt.offsets)} tokens: "
                f"'{prompt.lost}' is lost. Shorten the prompt."
            )
