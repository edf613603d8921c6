"""Numbers that are none: what stops a training run, and what has likely made them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tara.errors import TaraError


class NaNError(TaraError):
    """A loss, a gradient or a weight is NaN or infinite; nothing can be learned from there on."""


def check_no_nan(
    what: str, numbers: Tensor, names: Sequence[str], *, step: int, rate: float, precision: torch.dtype
) -> None:
    """Stop where a concept's numbers are not all finite.

    Args:
        what: what the numbers are, such as "loss".
        numbers: (concepts, count).
        names: of the concepts.
        step: at which they came about, from 1.
        rate: the learning rate of that step.
        precision: of the base.

    Raises:
        NotFiniteError: with the first such concept, the step, and the likely cause.
    """
    finite: list[bool] = torch.isfinite(numbers).all(1).tolist()
    for name, is_finite in zip(names, finite, strict=True):
        if not is_finite:
            raise NaNError(f"Step {step}: the {what} of '{name}' is not finite. {_cause(step, rate, precision)}")


def _cause(step: int, rate: float, precision: torch.dtype) -> str:
    if precision == torch.float16:
        return "float16 is likely too narrow for this base: use precision bf16 or no, or lower learning_rate."
    if step == 1:
        return "It is so from the first step on: the base or a photo is likely damaged. Try others."
    return f"The learning rate ({rate:g}) is likely too high: lower learning_rate."
