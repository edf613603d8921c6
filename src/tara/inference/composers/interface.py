"""What a composer is: which adapters each U-Net evaluation of a denoising step sees, and where they act."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tara.inference.binding import AdapterUse

Uses = tuple["AdapterUse", ...]
"""Adapters as one picture uses them, in the order in which they were given."""

Turn = Callable[[int, int], Sequence[int]]
"""From the number of a denoising step (0 first) and the number of members: the members that this step evaluates."""


def together(uses: Uses) -> tuple[Uses, ...]:
    """One member with all adapters."""
    return (uses,)


def one_by_one(uses: Uses) -> tuple[Uses, ...]:
    """A member for each adapter; without adapters one member, the base."""
    return tuple((use,) for use in uses) or ((),)


def every_member(step: int, members: int) -> Sequence[int]:
    """All members at every step."""
    return range(members)


def as_given(prompt: str, uses: Uses) -> str:
    """The prompt as the user wrote it."""
    return prompt


@dataclass(frozen=True, kw_only=True)
class Composer:
    """A way to draw one prompt with several adapters.

    At each denoising step the U-Net is evaluated once for each member whose turn it is, with that member's adapters
    alone, and the step goes on with the mean of the predictions.
    """

    meaning: str
    """What it does, in a few words for tables and help."""
    everywhere: bool = True
    """Whether adapters act as plain LoRAs do: on every token of every row, the unconditional ones too, and on all that
    the text encoders read. Otherwise on their rare word's tokens in the conditional rows."""
    members: Callable[[Uses], tuple[Uses, ...]] = together
    """The adapters of each U-Net evaluation."""
    turn: Turn = every_member
    prompt: Callable[[str, Uses], str] = as_given
    """The text that is drawn, from the user's prompt."""
