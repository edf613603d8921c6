"""Where a word sits in a tokenized prompt."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Span = tuple[int, int]
"""First character and the one after the last, as in a slice."""


def word_spans(text: str, word: str) -> list[Span]:
    """Every place of a word in a text, by characters.

    Whole words only (``lo`` is not in ``xlo``, but ``xlo's`` counts), whatever the case; the parts of a word such as
    ``toy dog`` may be apart by any white space. An accent or vowel sign that follows a letter, and what a joiner ties
    to an emoji, belong to it.
    """
    pattern = r"\s+".join(re.escape(part) for part in word.split())
    if not pattern:
        return []
    found = re.finditer(rf"(?<![\w\u200d]){pattern}(?!\w)", text, flags=re.IGNORECASE)
    return [match.span() for match in found if not _goes_on(text[match.end() : match.end() + 1])]


def _goes_on(following: str) -> bool:
    """Whether a character changes the one before it: a combining mark, or the joiner of emoji and of some scripts."""
    return following == "\u200d" or unicodedata.category(following or " ").startswith("M")


def class_word_of(text: str, rare: Span, class_word: str) -> Span | None:
    """The class word that belongs to a rare word: the first one behind it, else the last one before it."""
    spans = word_spans(text, class_word)
    following = [span for span in spans if span[0] >= rare[1]]
    return next(iter(following), spans[-1] if spans else None)


def with_class_words(text: str, named: Iterable[tuple[Span, str]]) -> str:
    """The text without rare words: ``a xlo dog`` becomes ``a dog``, and a lone ``xlo`` becomes ``dog``.

    Args:
        text: a prompt.
        named: where each rare word stands, from `word_spans`, and its class word. Where one rare word has several
            class words, the one that follows it counts.
    """
    class_words: dict[Span, list[str]] = {}
    for span, class_word in named:
        class_words.setdefault(span, []).append(class_word)
    for (first, end), some in sorted(class_words.items(), reverse=True):  # from the end, so that places before it stay
        rest = text[end:]
        followed = any(_begins_with(class_word, rest) for class_word in some)
        text = text[:first] + (rest.lstrip() if followed else some[0] + rest)
    return text


def _begins_with(class_word: str, text: str) -> bool:
    """Also with its plural; nothing is the beginning of everything."""
    class_word, text = (" ".join(part.split()).casefold() for part in (class_word, text))
    return text.startswith(class_word)


def find_word(offsets: Sequence[Span], span: Span) -> list[int]:
    """Positions of the tokens that hold characters of a span.

    Args:
        offsets: the characters of each token, as tokenizers report them; special tokens are empty.
        span: where the word is, from `word_spans`.
    """
    first, end = span
    return [position for position, (start, stop) in enumerate(offsets) if start < stop and start < end and stop > first]


@dataclass(frozen=True)
class Tokenized:
    """A text as the text encoder sees it.

    ``offsets`` holds the characters of each of the encoder's tokens, padding included; special tokens are empty.
    ``kept`` is how many characters fitted; ``text[kept:]`` is lost.
    """

    text: str
    offsets: tuple[Span, ...]
    kept: int

    @property
    def lost(self) -> str:
        """The end of the text that did not fit, empty when everything did."""
        return self.text[self.kept :].strip()

    def holds(self, span: Span) -> bool:
        """Whether all of the span's characters reached the encoder."""
        return span[1] <= self.kept

    def positions(self, span: Span) -> tuple[int, ...]:
        """Positions of the span's tokens."""
        return tuple(find_word(self.offsets, span))
