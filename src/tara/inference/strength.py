"""How large an adapter's deltas are beside the weights that they change."""

import math
import warnings
from collections.abc import Mapping

from tara.core.lora import LowRank
from tara.errors import TaraWarning
from tara.families.base import Base
from tara.inference.binding import ActiveAdapter

MOST = 1.5
"""Beyond a delta of one and a half times the norm of its layer's weight hardly a picture shows its subject, and soon
all are noise (``benchmarks/strength_toyland.py``). Trained adapters have less than the norm itself."""


def strengths(base: Base, layers: Mapping[str, LowRank]) -> dict[str, float]:
    """The norm of each delta divided by that of the weight that it changes (Frobenius), by layer."""
    return {path: low_rank.norm() / max(base.weight_norm(path), 1e-12) for path, low_rank in layers.items()}


def check_strength(base: Base, active: ActiveAdapter) -> None:
    """Warn of an adapter that at its weight drowns the base."""
    ratios = strengths(base, active.adapter.layers)
    layer = max(ratios, key=ratios.__getitem__, default=None)
    if layer is None or not active.weight:
        return
    strongest = abs(active.weight) * ratios[layer]
    if strongest > MOST:
        warnings.warn(
            f"{active.name} at weight {active.weight:g} changes '{layer}' by {strongest:.2g} times its own size, which makes "
            f"noise of pictures. Give it a weight below {_rounded_down(MOST / ratios[layer]):g}.",
            TaraWarning,
            stacklevel=2,
        )


def _rounded_down(number: float) -> float:
    """The number with one digit that counts."""
    digit = 10 ** math.floor(math.log10(number))
    return math.floor(number / digit) * digit
