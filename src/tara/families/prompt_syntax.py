"""The syntax of prompts: weights in parentheses and BREAK, and the chunks in which a text encoder reads a long prompt.

    (xlo dog:1.3) on a beach BREAK at sunset      weight 1.3 for two words, and a new chunk after `beach`

Weights of nested parentheses multiply. Parentheses without a number are text, and so are escaped ones, ``\\(``.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from tara.core.tokens import Span

WEIGHT = re.compile(r":\s*(\d+(?:\.\d*)?|\.\d+)\s*$")
BREAK = re.compile(r"\s*\bBREAK\b\s*")
LATEST_COMMA = 0.7  # fraction of a full chunk; ending it at an earlier comma would leave too much of it empty


@dataclass(frozen=True)
class Prompt:
    """A prompt without its syntax: the text, the weight of each character, and the positions where new chunks begin."""

    text: str
    weights: tuple[float, ...]
    breaks: tuple[int, ...] = ()

    @property
    def is_weighted(self) -> bool:
        """Whether any weight is not 1."""
        return any(weight != 1 for weight in self.weights)


def parse_prompt(text: str) -> Prompt:
    """Separate a prompt's text from its weights and breaks. Text without such syntax is not changed."""
    levels: list[list[tuple[str, float]]] = [[]]
    characters = iter(text)
    for character in characters:
        if character == "\\":
            escaped = next(characters, "")
            levels[-1] += [(part, 1.0) for part in (escaped if escaped in ("(", ")") else character + escaped)]
        elif character == "(":
            levels.append([])
        elif character == ")" and len(levels) > 1:
            inner = levels.pop()
            weight = WEIGHT.search("".join(character for character, _ in inner))
            if weight:
                levels[-1] += [(character, old * float(weight[1])) for character, old in inner[: weight.start()]]
            else:
                levels[-1] += [("(", 1.0), *inner, (")", 1.0)]
        else:
            levels[-1].append((character, 1.0))
    while len(levels) > 1:
        unclosed = levels.pop()
        levels[-1] += [("(", 1.0), *unclosed]
    return _split_at_breaks("".join(character for character, _ in levels[0]), [weight for _, weight in levels[0]])


def _split_at_breaks(text: str, weights: list[float]) -> Prompt:
    breaks: list[int] = []
    while match := BREAK.search(text):
        first, end = match.span()
        gap = " " if first and end < len(text) else ""
        text = text[:first] + gap + text[end:]
        weights = weights[:first] + [1.0] * len(gap) + weights[end:]
        if gap:
            breaks.append(first + 1)
    return Prompt(text, tuple(weights), tuple(breaks))


def chunk_spans(prompt: Prompt, characters_read: Callable[[str], int]) -> Iterator[Span]:
    """The character spans of a prompt's chunks. There is at least one, and it may be empty.

    A full chunk ends at a comma near its end, else at a space, else within a word.

    Args:
        prompt: the prompt.
        characters_read: from a text to the number of its first characters that fit one chunk.
    """
    for start, end in pairwise((0, *prompt.breaks, len(prompt.text))):
        while True:
            part = prompt.text[start:end]
            room = characters_read(part)
            if not part[room:].strip() or not room:
                yield start, end
                break
            cut = start + _chunk_end(part, room)
            yield start, cut
            start = cut


def _chunk_end(text: str, room: int) -> int:
    comma = text.rfind(",", 0, room) + 1
    if comma >= LATEST_COMMA * room:
        return comma
    if text[room].isspace():
        return room
    space = max(text.rfind(blank, 0, room) for blank in " \t\n") + 1
    return space or room


def apply_token_weights(
    embeddings: Float[Tensor, "*rows tokens d"], weights: Float[Tensor, " tokens"]
) -> Float[Tensor, "*rows tokens d"]:
    """Multiply embeddings by their token's weight, then rescale them to their former mean (as AUTOMATIC1111's web UI).

    Undefined where the weighted mean is 0.
    """
    scaled = embeddings * weights.to(embeddings)[:, None]
    return scaled * (embeddings.mean() / scaled.mean())
