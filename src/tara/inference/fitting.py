"""Prepares an adapter for a base: checks it, computes deltas that depend on base weights, loads bundled embeddings."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from tara.core.lora import LowRank, low_rank_from_matrix, truncate_rank
from tara.errors import TaraError, warn
from tara.families.base import Base
from tara.families.text import TEXT_ENCODERS
from tara.inference.active_adapter import ActiveAdapter

REGION_RANK = 64
"""Rank to which deltas of methods other than LoRA are reduced for regions, because the cost per position grows with the
rank."""
LARGEST_RATIO = 1.5
"""Largest norm of a delta relative to its layer's weight. Above it, hardly any image shows its subject
(``benchmarks/strength_toyland.py``). Deltas of trained adapters are below 1."""


def adapter_for_base(base: Base, active: ActiveAdapter, *, regional: bool) -> ActiveAdapter:
    """Check an adapter, load its bundled embeddings and return it as it acts on the base.

    Args:
        base: the base.
        active: the adapter.
        regional: whether the composer confines it to regions; then other methods than LoRA are reduced to low rank.

    Raises:
        TaraError: when it does not fit the base.
    """
    active = with_resolved_changes(base, active)
    check_fits(base, active)
    check_strength(base, active)
    load_bundled_embeddings(base, active)
    return truncated_for_regions(active) if regional and active.adapter.card.method else active


@torch.no_grad()
def with_resolved_changes(base: Base, active: ActiveAdapter) -> ActiveAdapter:
    """The adapter with its changes that depend on the base's weights (DoRA, OFT, IA3) computed as full matrices.

    Raises:
        TaraError: when the base lacks a layer, or has it with another shape.
    """
    adapter = active.adapter
    if not adapter.weight_changes:
        return active
    deltas: dict[str, LowRank] = {}
    for path, change in adapter.weight_changes.items():
        try:
            weight = base.parameter(path).detach().float().cpu()
            deltas[path] = low_rank_from_matrix(change.difference_from(weight).flatten(1))
        except (AttributeError, RuntimeError) as failure:
            raise TaraError(
                f"{active.name} changes a layer '{path}', which this base does not have in that shape. Use the base "
                "that it was trained on."
            ) from failure
    in_text = {path: delta for path, delta in deltas.items() if path.startswith(TEXT_ENCODERS)}
    in_denoiser = {path: delta for path, delta in deltas.items() if path not in in_text}
    complete = replace(
        adapter,
        layers={**adapter.layers, **in_denoiser},
        text_layers={**adapter.text_layers, **in_text},
        weight_changes={},
    )
    return replace(active, adapter=complete)


def truncated_for_regions(active: ActiveAdapter) -> ActiveAdapter:
    """Reduce an adapter of another method to a plain LoRA of rank `REGION_RANK`, without changes of biases and norms.

    Warns (TaraWarning) with the relative error (Frobenius norm over all layers).
    """
    adapter, lost, whole = active.adapter, 0.0, 0.0
    parts: list[dict[str, LowRank]] = []
    for layers in (adapter.layers, adapter.text_layers):
        truncated: dict[str, LowRank] = {}
        for path, delta in layers.items():
            size = delta.norm() ** 2
            low_rank, error = (None, 1.0) if path.endswith((".bias", ".weight")) else truncate_rank(delta, REGION_RANK)
            lost, whole = lost + error**2 * size, whole + size
            if low_rank is not None:
                truncated[path] = low_rank
        parts.append(truncated)
    warn(
        f"{active.name} contains {adapter.card.method} and is reduced to rank {REGION_RANK} for regions: the relative "
        f"error is {(lost / max(whole, 1e-30)) ** 0.5:.1%}. The composer 'sum' applies it exactly."
    )
    return replace(active, adapter=replace(adapter, layers=parts[0], text_layers=parts[1]))


def check_fits(base: Base, active: ActiveAdapter) -> None:
    """Refuse an adapter if the base lacks one of its layers, or has it with another shape.

    Raises:
        TaraError: names both families, or the first layer that does not fit.
    """
    card = active.adapter.card
    if card.family and card.family != base.family.name:  # a file without a card may not tell its family
        raise TaraError(
            f"{active.name} was trained on a base of family '{card.family}', but this base is '{base.family.name}'. "
            f"Use a '{card.family}' base{f' such as {card.base}' if card.base else ''}, or train it again on this one."
        )
    for path, low_rank in active.adapter.all_layers.items():
        try:
            sizes = base.projection_sizes(path)
        except AttributeError:
            sizes = None
        if sizes != (low_rank.d_in, low_rank.d_out):
            raise TaraError(
                f"{active.name} changes a layer '{path}' of {low_rank.d_in} x {low_rank.d_out}, which this base does "
                "not have. Use the base that it was trained on, or train it again on this one."
            )


def strengths(base: Base, layers: Mapping[str, LowRank]) -> dict[str, float]:
    """Frobenius norm of each layer's delta, divided by the norm of the weight that it changes."""
    return {path: low_rank.norm() / max(base.weight_norm(path), 1e-12) for path, low_rank in layers.items()}


def check_strength(base: Base, active: ActiveAdapter) -> None:
    """Warn (TaraWarning) if a delta, times the adapter weight, is more than `LARGEST_RATIO` times the norm of its
    layer's weight.
    """
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


def load_bundled_embeddings(base: Base, active: ActiveAdapter) -> None:
    """Load an adapter's textual inversions into the pipeline, until ``pipe.unload_textual_inversion()``.

    Raises:
        TaraError: when the base lacks an encoder, its width differs, or the pipeline has another embedding of a word.
    """
    for word, vectors in active.adapter.embeddings.items():
        for name, embedding in vectors.items():
            encoder = getattr(base.pipe, name, None)
            tokenizer: Any = getattr(base.pipe, name.replace("text_encoder", "tokenizer"), None)
            if encoder is None or encoder.get_input_embeddings().weight.shape[1] != embedding.shape[1]:
                raise TaraError(
                    f"{active.name} contains an embedding of '{word}' for '{name}', {embedding.shape[1]} wide, which "
                    "this base does not have. Use the base that it was trained on."
                )
            token = tokenizer.get_added_vocab().get(word)
            if token is None:
                base.pipe.load_textual_inversion(embedding, token=word, text_encoder=encoder, tokenizer=tokenizer)
            elif not torch.equal(encoder.get_input_embeddings().weight[token].cpu(), embedding[0].to(encoder.dtype)):
                raise TaraError(
                    f"{active.name} contains an embedding of '{word}', and the pipeline has another one of that word. "
                    "Call pipe.unload_textual_inversion() first."
                )
