"""The definition of a composer: the adapters that act in a network evaluation, their tokens, and the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tara.inference.active_adapter import ActiveAdapters

Turns = Callable[[int, int], Sequence[int]]
"""(index of the denoising step from 0, number of adapters) to the indices of the adapters that the step evaluates."""


@dataclass(frozen=True, kw_only=True)
class Composer:
    """A way to combine several adapters in one prompt."""

    description: str
    """What it does, in a few words for tables and help."""
    masked: bool = False
    """Whether adapters act on their rare words' tokens in the conditional rows. Otherwise they act as plain LoRAs do:
    on every token of every row, including unconditional rows, and in the text encoders on the whole text."""
    regional: bool = False
    """Whether each adapter acts in its own region of the image only, see `tara.inference.confining`."""
    adapters: Callable[[ActiveAdapters], ActiveAdapters] = lambda adapters: adapters
    """From the user's adapters to the adapters that act, for instance their merge."""
    prompt: Callable[[str, ActiveAdapters], str] = lambda prompt, adapters: prompt
    """From the user's prompt and adapters to the text that is encoded."""
    turns: Turns | None = None
    """For composers that evaluate the network with one adapter at a time: the adapters of each step, see
    `tara.inference.composers.sequential`. None: one evaluation with all adapters."""
