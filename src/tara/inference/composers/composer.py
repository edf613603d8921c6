"""The definition of a composer: the adapters that act in a network evaluation, their tokens, and the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tara.inference.active_adapter import ActiveAdapters

Turns = Callable[[int, int], Sequence[int]]
"""From the number of a denoising step (0 first) and the number of adapters: those that this step evaluates."""


@dataclass(frozen=True, kw_only=True)
class Composer:
    """A way to combine several adapters in one prompt."""

    description: str
    """What it does, in a few words for tables and help."""
    masked: bool = False
    """Whether adapters act on their rare words' tokens in the conditional rows. Otherwise they act as plain LoRAs do:
    on every token of every row, the unconditional ones too, and on all that the text encoders read."""
    regional: bool = False
    """Whether each adapter acts in its own region of the image only, see `tara.inference.confining`."""
    adapters: Callable[[ActiveAdapters], ActiveAdapters] = lambda adapters: adapters
    """The adapters that act, such as a merge of all."""
    prompt: Callable[[str, ActiveAdapters], str] = lambda prompt, adapters: prompt
    """The text that is encoded, from the user's prompt."""
    turns: Turns | None = None
    """Where a step takes several network evaluations, one for each adapter, see
    `tara.inference.composers.sequential`. None: one evaluation with all adapters."""
