"""Fuses adapters' deltas into a base's weights temporarily."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tara.core.lora import LowRank
from tara.families.base import Base
from tara.inference.active_adapter import ActiveAdapter

Deltas = Mapping[str, Sequence[tuple[float, LowRank]]]
"""By the path of a layer: weighted deltas."""


def global_part(adapters: Iterable[ActiveAdapter]) -> dict[str, list[tuple[float, LowRank]]]:
    """The adapters' deltas of all layers except the text's keys and values, with their strengths."""
    return _collected((active.adapter.global_deltas, active.global_strength, active) for active in adapters)


@contextmanager
def fused(base: Base, deltas: Deltas) -> Generator[None]:
    """Add deltas to the layers' weights in a ``with`` block. At its end, the original weights are restored."""
    originals: list[tuple[torch.nn.Parameter, Tensor]] = []
    try:
        for path, weighted in deltas.items():
            weight = base.parameter(path)
            originals.append((weight, weight.data))
            weight.data = _sum(weight.data, weighted)
        yield
    finally:
        for weight, original in originals:
            weight.data = original


@contextmanager
def fused_text(base: Base, adapters: Iterable[ActiveAdapter]) -> Generator[None]:
    """`fused` for the adapters' text-encoder deltas, each times its adapter's weight."""
    with fused(base, _collected((active.adapter.text_layers, active.weight, active) for active in adapters)):
        yield


def _sum(weight: Tensor, weighted: Sequence[tuple[float, LowRank]]) -> Tensor:
    precise = torch.promote_types(weight.dtype, torch.float32)
    placed = [(strength, low_rank.to(weight.device, precise)) for strength, low_rank in weighted]
    # one product for all adapters: their sum is a sum over all their ranks
    a = torch.cat([low_rank.a for _, low_rank in placed])
    b = torch.cat([strength * low_rank.scale * low_rank.b for strength, low_rank in placed], dim=1)
    total = weight.to(precise).reshape(len(weight), -1) + b @ a
    return total.view_as(weight).to(weight.dtype)


def _collected(
    parts: Iterable[tuple[Mapping[str, LowRank], float, ActiveAdapter]],
) -> dict[str, list[tuple[float, LowRank]]]:
    deltas: dict[str, list[tuple[float, LowRank]]] = {}
    for layers, strength, _ in sorted(parts, key=lambda part: part[2].order):
        for path, low_rank in layers.items() if strength else ():
            deltas.setdefault(path, []).append((strength, low_rank))
    return deltas
