"""The state of a training between two steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingState:
    """A training run after some whole number of steps: all that is needed to go on as if it had not stopped."""

    step: int
    tensors: Mapping[str, Tensor]
    plain: Mapping[str, Any]
