"""The positions of a word in a tokenized prompt."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Span = tuple[int, int]
"""First character and the one after the last, as in a slice."""


def word_spans(text: str, word: str) -> list[Span]:
    """Every occurrence of a word in a text, by characters.

    Whole words only (``lo`` is not in ``xlo``, but ``xlo's`` counts), whatever the case; any white space separates the
    parts of a word such as ``toy dog``. A combining mark belongs to its letter, a joined emoji to the one before it.
    """
    pattern = r"\s+".join(re.escape(part) for part in word.split())
    if not pattern:
        return []
    matches = re.finditer(rf"(?<![\w\u200d]){pattern}(?!\w)", text, flags=re.IGNORECASE)
    return [match.span() for match in matches if not _modifies(text[match.end() : match.end() + 1])]


def _modifies(character: str) -> bool:
    """Whether a character changes the one before it: a combining mark, or the joiner of emoji and of some scripts."""
    return character == "\u200d" or unicodedata.category(character or " ").startswith("M")


def class_word_of(text: str, rare: Span, class_word: str) -> Span | None:
    """The class word that belongs to a rare word: the first one after it, else the last one before it."""
    spans = word_spans(text, class_word)
    following = [span for span in spans if span[0] >= rare[1]]
    return next(iter(following), spans[-1] if spans else None)


def with_class_words(text: str, named: Iterable[tuple[Span, str]]) -> str:
    """The text without rare words: ``a xlo dog`` becomes ``a dog``, and ``xlo`` alone becomes ``dog``.

    ``named``: (span of a rare word, its class word). If a span has several, the one that follows it in the text is
    used.
    """
    class_words: dict[Span, list[str]] = {}
    for span, class_word in named:
        class_words.setdefault(span, []).append(class_word)
    for (first, end), candidates in sorted(class_words.items(), reverse=True):  # from the end: earlier spans stay valid
        rest = text[end:]
        followed = any(_normalized(rest).startswith(_normalized(class_word)) for class_word in candidates)
        text = text[:first] + (rest.lstrip() if followed else candidates[0] + rest)
    return text


def _normalized(text: str) -> str:
    return " ".join(text.split()).casefold()


def find_word(offsets: Sequence[Span], span: Span) -> list[int]:
    """Positions of the tokens that hold characters of a span; ``offsets`` are the tokens' characters."""
    first, end = span
    return [position for position, (start, stop) in enumerate(offsets) if start < stop and start < end and stop > first]


@dataclass(frozen=True)
class Tokenized:
    """A text as the text encoder reads it.

    ``written`` is what a user has written, with the syntax that ``text`` has not, where there is some.
    ``offsets`` are the characters of each of the encoder's tokens, padding included; special tokens are empty.
    ``characters_read`` is how many the encoder reads, from the first; the rest is cut off.
    """

    text: str
    offsets: tuple[Span, ...]
    characters_read: int
    written: str | None = None

    @property
    def lost(self) -> str:
        """The end of the text that is cut off; empty when nothing is."""
        return self.text[self.characters_read :].strip()

    def holds(self, span: Span) -> bool:
        """Whether the encoder reads all of the span."""
        return span[1] <= self.characters_read

    def positions(self, span: Span) -> tuple[int, ...]:
        """Positions of the span's tokens, see `find_word`."""
        return tuple(find_word(self.offsets, span))
