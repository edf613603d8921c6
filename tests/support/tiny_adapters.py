"""Adapters with random weights for the tiny pipelines."""

from typing import Any

import torch

from tara.adapters.adapter import Adapter, AdapterCard
from tara.core.lora import LowRank, new_low_rank
from tara.families.base import Base

CROSS_KV = ("attn2.to_k", "attn2.to_v")
ATTENTION = (*CROSS_KV, "attn2.to_q", "attn2.to_out.0", "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")


def random_adapter(
    base: Base,
    /,  # a card has a base too
    rare_word: str = "xlo",
    class_word: str = "dog",
    *,
    targets: tuple[str, ...] = CROSS_KV,
    scale: float = 4.0,
    strength: float = 0.12,
    seed: int = 0,
    **card: Any,
) -> Adapter:
    """An adapter of rank 4 on the ``targets``; ``strength`` 0 is a fresh one, which changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, LowRank] = {}
    for attention in base.attention_layers:
        for projection in ("to_q", "to_k", "to_v", "to_out.0"):
            path = f"{attention}.{projection}"
            if path.endswith(targets):
                delta = new_low_rank(*base.projection_sizes(path), rank=4, scale=scale, generator=generator)
                b = strength * torch.randn(delta.b.shape, generator=generator)
                layers[path] = LowRank(delta.a, b, scale)
    described = {
        "rare_word": rare_word,
        "class_word": class_word,
        "family": base.family.name,
        "rank": 4,
        "alpha": 4 * scale,
        "phrase": f"a photo of a {rare_word} {class_word}",
        "context": "prompt",
    }
    return Adapter(AdapterCard(**(described | card)), layers, name=f"{rare_word}-{class_word}.safetensors")
