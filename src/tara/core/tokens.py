"""The positions of a word in a tokenized prompt."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Span = tuple[int, int]
"""Index of the first character, and of the one after the last, as in a slice."""


def word_spans(text: str, word: str) -> list[Span]:
    """The character spans of every occurrence of a word in a text.

    Matches whole words only (``lo`` is not in ``xlo``, but ``xlo`` is in ``xlo's``) and ignores case. Any white space
    may separate the parts of a word such as ``toy dog``. A combining mark belongs to the letter before it, and a joined
    emoji to the emoji before it.
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
    """The class word that belongs to a rare word: the first one after it, else the last one in the text, else None."""
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
    """Positions of the tokens that overlap a span of characters; ``offsets`` are the tokens' character spans."""
    first, end = span
    return [position for position, (start, stop) in enumerate(offsets) if start < stop and start < end and stop > first]


@dataclass(frozen=True)
class Tokenized:
    """A text as the text encoder reads it.

    ``written`` is the prompt as the user wrote it, if it had syntax (such as weights) that ``text`` lacks; else None.
    ``offsets`` are the character spans of the encoder's tokens, including padding; special tokens have empty spans.
    ``characters_read`` is the number of characters, from the start, that the encoder reads. The rest is cut off.
    """

    text: str
    offsets: tuple[Span, ...]
    characters_read: int
    written: str | None = None

    @property
    def lost(self) -> str:
        """The end of the text that is cut off; empty if the encoder reads all of it."""
        return self.text[self.characters_read :].strip()

    def holds(self, span: Span) -> bool:
        """Whether the encoder reads all of the span."""
        return span[1] <= self.characters_read

    def positions(self, span: Span) -> tuple[int, ...]:
        """Positions of the span's tokens, see `find_word`."""
        return tuple(find_word(self.offsets, span))
