"""Merging: several adapters become one plain LoRA, layer by layer, before generation.

- TIES (Yadav et al., NeurIPS 2023, arXiv 2306.01708): of each delta matrix the largest fifth of the entries stays, as
  in the paper; an entry of the merged matrix is the mean of those that have its elected sign.
- DARE (Yu et al., ICML 2024, arXiv 2311.03099): half of each delta matrix is dropped at random and the rest doubled,
  then the adapters are added. (Language models lose nine tenths without harm; the paper has no figure for images.)

The matrices ``s B A`` are merged by peft's functions, and the result stays a full matrix. Merging the factors instead,
as peft's ``add_weighted_adapter`` does for 'ties' and 'dare_linear', would mean nothing: ``(B M, M^-1 A)`` is the same
delta for any invertible M, so the size and the sign of an entry of A say nothing about it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

from tara.inference.composers.composer import Composer

if TYPE_CHECKING:
    from torch import Tensor

    from tara.core.lora import LowRank
    from tara.inference.active_adapter import ActiveAdapters

Method = Literal["ties", "dare_linear"]
"""peft's functions of these names: from one layer's deltas (d_out, d_in) and their weights (n,) to the merged delta."""
DENSITY: dict[Method, float] = {"ties": 0.2, "dare_linear": 0.5}


def merged(adapters: ActiveAdapters, method: Method) -> ActiveAdapters:
    """Merge several adapters, times their weights, into one plain LoRA.

    A layer that only some adapters have is merged from these. Random choices use a fixed seed, and torch's global
    generator is not changed.
    """
    import torch
    from peft.utils import merge_utils  # here, because peft takes seconds to import

    from tara.adapters.adapter import Adapter
    from tara.adapters.card import AdapterCard
    from tara.core.lora import low_rank_from_matrix
    from tara.families.text import TEXT_ENCODERS
    from tara.inference.active_adapter import ActiveAdapter

    if not adapters:
        return ()
    merge: Callable[[list[Tensor], Tensor, float], Tensor] = getattr(merge_utils, method)
    layers: dict[str, LowRank] = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        for path, deltas in sorted(_by_layer(adapters).items()):
            weights = torch.tensor([weight for weight, _ in deltas], dtype=torch.float32)
            dense = [delta.to(dtype=torch.float32).dense() for _, delta in deltas]
            layers[path] = low_rank_from_matrix(merge(dense, weights, DENSITY[method]), deltas[0][1].kernel)
    card = AdapterCard(rare_word="", class_word="", family="", rank=1, alpha=1, phrase="", context="prompt")
    in_text = {path for path in layers if path.startswith(TEXT_ENCODERS)}
    adapter = Adapter(
        card.model_copy(update={"text_kv": adapters[0].adapter.card.text_kv}),
        {path: delta for path, delta in layers.items() if path not in in_text},
        name=" + ".join(active.name for active in adapters),
        text_layers={path: layers[path] for path in sorted(in_text)},
    )
    return (ActiveAdapter(adapter),)


def _by_layer(adapters: ActiveAdapters) -> dict[str, list[tuple[float, LowRank]]]:
    deltas: dict[str, list[tuple[float, LowRank]]] = {}
    for active in sorted(adapters, key=lambda active: active.order):  # a fixed order of summation, as everywhere
        for path, delta in active.adapter.all_layers.items():
            weight = active.global_strength if path in active.adapter.global_deltas else active.weight
            if weight:  # an adapter of weight 0 must not vote on signs
                deltas.setdefault(path, []).append((weight, delta))
    return deltas


TIES = Composer(description="TIES merge to one LoRA, then sum", adapters=partial(merged, method="ties"))
DARE = Composer(description="DARE merge to one LoRA, then sum", adapters=partial(merged, method="dare_linear"))
