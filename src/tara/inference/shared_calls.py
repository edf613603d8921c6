"""Network calls shared by several images: selects the images of a call, joins their rows and fuses their adapters."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tara.families.base import Base
from tara.families.processors import TextConditioning
from tara.families.text import TextEncoding
from tara.inference.batch import PreparedBatch
from tara.inference.denoising import Denoising, Generation
from tara.inference.fusing import fused, global_part

TURN = 4  # network calls before another key has its turn; fusing a global part costs about as much as one call


@dataclass(frozen=True, eq=False)
class InFlight:
    """An image in denoising. ``load`` is its number of rows, counted as rows of the base's own resolution."""

    generation: Generation
    prepared: PreparedBatch
    denoising: Denoising
    load: float

    @property
    def key(self) -> tuple[Any, ...]:
        """Images with equal keys can share a network call."""
        return self.denoising.size, self.prepared.rows[0].batch_key


@dataclass(frozen=True, eq=False)
class JoinedText:
    """The text embeddings, keys and values of several images, joined to one batch."""

    members: list[InFlight]
    conditioning: TextConditioning
    encoding: TextEncoding


class SharedCalls:
    """Makes network calls for images with equal keys. Groups of images with different keys take turns.

    Args:
        base: the base. From `predict` to `end_turn`, the global part of the current group is fused into its weights.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        self._key: object = None
        self._calls_in_turn = 0
        self._calls = 0
        self._last_served: dict[object, int] = {}
        self._weights: ExitStack | None = None
        self._joined: JoinedText | None = None

    def next_members(self, in_flight: Sequence[InFlight], rows: int) -> list[InFlight]:
        """The images of the next call: as many of the current group as fit into ``rows``, but at least one."""
        keys = dict.fromkeys(member.key for member in in_flight)
        if not keys:
            self.end_turn()
            return []
        if self._key not in keys or (self._calls_in_turn >= TURN and len(keys) > 1):
            self.end_turn()
            # the key that has waited longest; among new keys, the first that arrived
            self._key = min(keys, key=lambda key: self._last_served.get(key, -1))
            self._calls_in_turn = 0
        self._calls_in_turn += 1
        self._calls += 1
        self._last_served = {key: call for key, call in self._last_served.items() if key in keys}
        self._last_served[self._key] = self._calls
        members: list[InFlight] = []
        for member in in_flight:
            fits = not members or member.load + sum(other.load for other in members) <= rows
            if member.key == self._key and fits:
                members.append(member)
        return members

    def join(self, members: list[InFlight]) -> JoinedText:
        """The members' texts in one batch. Reuses the last result while the members are the same."""
        if self._joined is None or self._joined.members != members:
            parts = [member.prepared.evaluations[0] for member in members]
            self._joined = JoinedText(
                members,
                TextConditioning.join([part.conditioning for part in parts]),
                TextEncoding.join([part.encoding for part in parts]),
            )
        return self._joined

    def predict(self, joined: JoinedText) -> Sequence[Tensor]:
        """The network's prediction for each member, from one call."""
        if self._weights is None:
            self._weights = ExitStack()
            adapters = joined.members[0].prepared.rows[0].unconfined
            self._weights.enter_context(fused(self._base, global_part(adapters)))
        latents, timesteps = zip(*(member.denoising.inputs() for member in joined.members), strict=True)
        predicted = self._base.predict(torch.cat(latents), torch.cat(timesteps), joined.encoding, joined.conditioning)
        return predicted.split([member.denoising.rows for member in joined.members])

    def end_turn(self) -> None:
        """Restore the weights that were before the global part was fused."""
        if self._weights is not None:
            self._weights.close()
            self._weights = None

    def give_up(self) -> None:
        """After a failed call: drop the joined texts and restore the weights."""
        self._joined = None
        self.end_turn()
