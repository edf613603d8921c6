"""Computes the exact matrices that methods other than plain LoRA add to a weight.

LoHa (FedPara, arXiv 2108.06098), LoKr and (IA)^3 as in LyCORIS (arXiv 2309.14859) and PEFT, LoCon's Tucker core, full
differences, DoRA (arXiv 2402.09353), OFT (arXiv 2306.07280, Cayley form).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
"""One layer's tensors by role, see `tara.adapters.formats.styles`."""


@dataclass(frozen=True, eq=False)
class WeightChange:
    """A change that depends on the base's weight, as a function of that weight."""

    difference_from: Callable[[Tensor], Tensor]


METHODS: Mapping[str, str] = {
    "hada": "LoHa",
    "lokr": "LoKr",
    "diff": "full difference",
    "w_norm": "trained norms",
    "b_norm": "trained norms",
    "lora_bias": "trained biases",
    "oft_blocks": "OFT",
    "ia3_l": "IA3",
    "on_input": "IA3",
    "dora_scale": "DoRA",
}
"""Method names by the prefix of a tensor role that identifies them; DoRA is the last step of the others."""


def method_of(tensors: Tensors) -> str | None:
    """The method of a layer's tensors; None for a plain LoRA."""
    return next((name for start, name in METHODS.items() if any(role.startswith(start) for role in tensors)), None)


def vector_differences(tensors: Tensors, scale: float) -> dict[str, Tensor]:
    """Differences of the vectors of norms and biases, by the parameter's name."""
    named = {"w_norm": "weight", "b_norm": "bias", "diff_b": "bias"}
    changes = {name: tensors[role] for role, name in named.items() if role in tensors}
    if "diff" in tensors and tensors["diff"].ndim == 1:
        changes["weight"] = tensors["diff"]
    if "lora_bias" in tensors:
        changes["bias"] = scale * tensors["lora_bias"]
    return changes


def difference(tensors: Tensors, alpha: float | None, in_config: float | None = None) -> Tensor | None:
    """The matrix (out, in x kernel) of LoHa, LoKr or a full difference, with its scale; None for other methods.

    Args:
        tensors: the layer's tensors.
        alpha: the layer's alpha. None if the file has none.
        in_config: alpha / rank from PEFT's config, which PEFT also applies to a LoKr of two full matrices.
    """
    if "hada_w1_a" in tensors or "hada_w1_b" in tensors:
        return _scale(alpha, tensors["hada_w1_b"]) * (_product(tensors, "hada", "1") * _product(tensors, "hada", "2"))
    if "lokr_w2" in tensors or "lokr_w2_a" in tensors:
        factor = next((tensors[role] for role in ("lokr_w2_b", "lokr_w1_b") if role in tensors), None)
        scale = (in_config or 1.0) if factor is None else _scale(alpha, factor)
        return scale * torch.kron(_product(tensors, "lokr", "1"), _product(tensors, "lokr", "2").contiguous())
    if "diff" in tensors and tensors["diff"].ndim > 1:
        return tensors["diff"].float().flatten(1)
    return None


def weight_change(tensors: Tensors, delta: Tensor | None, alpha: float | None) -> WeightChange | None:
    """The change of a DoRA, OFT or (IA)^3 layer. ``delta`` (out, in x kernel) is the low-rank delta of a DoRA."""
    if "dora_scale" in tensors:
        assert delta is not None
        return WeightChange(partial(_dora, delta=delta, magnitude=tensors["dora_scale"].float()))
    if "oft_blocks" in tensors:
        rescale = tensors["rescale"].float().reshape(-1, 1) if "rescale" in tensors else None
        return WeightChange(partial(_oft, blocks=tensors["oft_blocks"].float(), constraint=alpha, rescale=rescale))
    if "ia3_l" in tensors:  # PEFT: the factor, (1, in) or (out, 1)
        return WeightChange(partial(_scaled, by=tensors["ia3_l"].float() - 1))
    if "on_input" in tensors:
        by = tensors["weight"].float().reshape(-1)
        return WeightChange(partial(_scaled, by=by[None] if bool(tensors["on_input"]) else by[:, None]))
    return None


def tucker(down: Tensor, core: Tensor) -> Tensor:
    """Multiply LoCon's down matrix (rank, in, 1, 1) and Tucker core (rank, rank, h, w) to (rank, in, h, w)."""
    return torch.einsum("ijhw,jc->ichw", core.float(), down.float().flatten(1))


def _product(tensors: Tensors, name: str, number: str) -> Tensor:
    if f"{name}_w{number}" in tensors:
        return tensors[f"{name}_w{number}"].float().flatten(1)
    a, b = (tensors[f"{name}_w{number}_{half}"].float() for half in "ab")
    core = tensors.get(f"{name}_t{number}")
    if core is None:
        return a.flatten(1) @ b.flatten(1)
    return torch.einsum("ijhw,jc,io->ochw", core.float(), b, a).flatten(1)


def _scale(alpha: float | None, factor: Tensor) -> float:
    rank = factor.shape[0]
    return 1.0 if alpha is None else alpha / rank


def _dora(weight: Tensor, delta: Tensor, magnitude: Tensor) -> Tensor:
    whole = weight + delta.view_as(weight)
    magnitude = magnitude.reshape(*magnitude.shape, *[1] * (whole.ndim - magnitude.ndim))
    # PEFT stores a norm for each row, LyCORIS by default one for each input channel
    kept = 0 if magnitude.shape[0] == whole.shape[0] else 1
    norm = torch.linalg.vector_norm(whole, dim=[axis for axis in range(whole.ndim) if axis != kept], keepdim=True)
    return whole * (magnitude / norm) - weight


def _oft(weight: Tensor, blocks: Tensor, constraint: float | None, rescale: Tensor | None) -> Tensor:
    skew = blocks - blocks.mT
    if constraint:
        skew = skew * min(1.0, constraint * len(weight) / (float(skew.norm()) + 1e-8))
    identity = torch.eye(blocks.shape[-1])
    rotation = (identity + skew) @ torch.linalg.inv(identity - skew)
    rows = weight.flatten(1)
    turned = torch.einsum("knm,knc->kmc", rotation, rows.unflatten(0, blocks.shape[:2])).flatten(0, 1)
    return ((turned if rescale is None else rescale * turned) - rows).view_as(weight)


def _scaled(weight: Tensor, by: Tensor) -> Tensor:
    return weight * by.reshape(*by.shape, *[1] * (weight.ndim - by.ndim))
