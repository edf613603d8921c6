"""Merges: several adapters become one, layer by layer, before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tara.inference.composers.interface import Uses

if TYPE_CHECKING:
    from torch import Tensor

    from tara.adapters.adapter import Adapter
    from tara.core.lora import LowRank

Merge = Callable[["list[Tensor]", "Tensor"], "Tensor"]
"""From one layer's deltas (d_out, d_in) and their weights (n,) to the merged delta, as peft's functions have it."""


def merged_by(merge: Merge) -> Callable[[Uses], tuple[Uses, ...]]:
    """Members of a composer: one, whose only adapter is what ``merge`` makes of all."""

    def members(uses: Uses) -> tuple[Uses, ...]:
        from tara.inference.binding import (
            AdapterUse,  # here, because it brings torch, and composers are named without it
        )

        return ((AdapterUse(merged(uses, merge)),),) if uses else ((),)

    return members


def merged(uses: Uses, merge: Merge) -> Adapter:
    """One plain LoRA in place of several; their weights are in it.

    The matrices ``s B A`` are merged, and the result stays a full matrix. Merging the factors instead, as peft's
    ``add_weighted_adapter`` does for 'ties' and 'dare_linear', would mean nothing: ``(B M, M^-1 A)`` is the same delta
    for any invertible M, so the size and the sign of an entry of A say nothing about it, and merged factors multiply
    one adapter's B with another's A. Nor is the matrix cut back to a low rank, as by 'ties_svd': nothing needs one.

    A layer that only some adapters have is merged from those. Where a merge leaves something to chance it is the same
    every time, and torch's generator stays as it was.
    """
    import torch

    from tara.adapters.adapter import Adapter, AdapterCard
    from tara.core.lora import full_rank
    from tara.families.family import TEXT_ENCODERS

    layers: dict[str, LowRank] = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        for path, deltas in sorted(_by_layer(uses).items()):
            weights = torch.tensor([weight for weight, _ in deltas], dtype=torch.float32)
            merged_delta = merge([delta.to(dtype=torch.float32).dense() for _, delta in deltas], weights)
            layers[path] = full_rank(merged_delta, deltas[0][1].kernel)
    card = AdapterCard(rare_word="", class_word="", family="", rank=1, alpha=1, phrase="", context="prompt")
    return Adapter(
        card,
        {path: delta for path, delta in layers.items() if not path.startswith(TEXT_ENCODERS)},
        name=" + ".join(use.name for use in uses),
        text_layers={path: delta for path, delta in layers.items() if path.startswith(TEXT_ENCODERS)},
    )


def _by_layer(uses: Uses) -> dict[str, list[tuple[float, LowRank]]]:
    found: dict[str, list[tuple[float, LowRank]]] = {}
    for use in sorted(uses, key=lambda use: use.order):  # a fixed order of summation, as everywhere
        for path, delta in use.adapter.all_layers().items():
            weight = use.global_strength if path in use.adapter.global_part else use.weight
            if weight:  # one that is off must not vote either
                found.setdefault(path, []).append((weight, delta))
    return found
