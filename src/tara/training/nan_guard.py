"""Stops a training in which numbers are NaN or infinite, and names the probable cause."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tara.errors import TaraError


class NaNError(TaraError):
    """A loss, a gradient or a weight is NaN or infinite; nothing can be learned from there on."""


@dataclass(frozen=True, kw_only=True)
class NaNGuard:
    """Checks a step's numbers: ``step`` counts from 1, ``rate`` is its learning rate, ``precision`` the base's."""

    names: Sequence[str]
    step: int
    rate: float
    precision: torch.dtype

    def check(self, what: str, numbers: Tensor) -> None:
        """Refuse (NaNError) numbers, (concepts, ...), that are not all finite, by the first such concept."""
        finite: list[bool] = torch.isfinite(numbers.reshape(len(self.names), -1)).all(1).tolist()
        for name, is_finite in zip(self.names, finite, strict=True):
            if not is_finite:
                raise NaNError(f"Step {self.step}: the {what} of '{name}' is NaN or infinite. {self._cause()}")

    def _cause(self) -> str:
        if self.precision == torch.float16:
            return "The range of float16 is probably too small: use precision bf16 or fp32, or lower learning_rate."
        if self.step == 1:
            return "It happened in the first step, so the base or a photo is probably damaged. Try others."
        return f"The learning rate ({self.rate:g}) is probably too high: lower learning_rate."
