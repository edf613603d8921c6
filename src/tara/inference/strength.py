"""The norm of an adapter's deltas relative to the weights that they change."""

import math
from collections.abc import Mapping

from tara.core.lora import LowRank
from tara.errors import warn
from tara.families.base import Base
from tara.inference.active_adapter import ActiveAdapter

LARGEST_RATIO = 1.5
"""Beyond a delta of one and a half times the norm of its layer's weight hardly an image shows its subject, and soon
all are noise (``benchmarks/strength_toyland.py``). Trained adapters have less than the norm itself."""


def strengths(base: Base, layers: Mapping[str, LowRank]) -> dict[str, float]:
    """The norm of each delta divided by that of the weight that it changes (Frobenius), by layer."""
    return {path: low_rank.norm() / max(base.weight_norm(path), 1e-12) for path, low_rank in layers.items()}


def check_strength(base: Base, active: ActiveAdapter) -> None:
    """Warn (TaraWarning) of an adapter whose weight leaves nothing of the base."""
    ratios = strengths(base, active.adapter.layers)
    layer = max(ratios, key=ratios.__getitem__, default=None)
    if layer is None or abs(active.weight) * ratios[layer] <= LARGEST_RATIO:
        return
    most = LARGEST_RATIO / ratios[layer]
    digit = 10 ** math.floor(math.log10(most))
    warn(
        f"{active.name} at weight {active.weight:g} changes '{layer}' by {abs(active.weight) * ratios[layer]:.2g} "
        f"times the norm of its weight, which turns images into noise. Give an adapter weight below "
        f"{math.floor(most / digit) * digit:g}."
    )
