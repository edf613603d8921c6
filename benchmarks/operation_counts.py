"""How many operations is a denoising step, and which share of them is the text's and the adapters'?

    python benchmarks/operation_counts.py     writes benchmarks/results/operation_counts_cpu.json

Floating-point operations of one guided U-Net call (two rows, 77 tokens) at each family's own size, counted on shapes
alone: nothing is computed, so neither memory nor a GPU matters. Adapters have rank 8.

- `text_kv`: the text's keys and values, which a stock pipeline computes at every step and tara once per prompt;
- `tara cross_kv`: what one adapter adds, once per prompt: its word's token, in every cross-attention;
- `diffusers cross_kv`, `diffusers attention`: what one adapter adds to every step where its factors stay beside layers;
- `published`: the same for a dense matrix beside every attention projection.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import speed_shared as speed
import torch
from torch import Tensor, nn

from tara.families.single_file import CONFIGS
from tara.training.loop import ATTENTION_PROJECTIONS

OWN_SIDES = {"sd1": 64, "sd2": 96, "sdxl": 128}
"""Latents per side of a family's own pictures (of SD 2.x, of the larger ones)."""
ROWS, TOKENS = 2, 77
TEXT = ("attn2.to_k", "attn2.to_v")


def shape_of(configs: Path) -> Any:
    """A U-Net of a published shape, without numbers."""
    kind = diffusers.UNet2DConditionModel
    with torch.device("meta"):
        return kind.from_config(kind.load_config(configs))


def count(unet: Any, side: int) -> dict[str, int]:
    """The operations of a guided call, and those of adapters beside its layers, in all."""
    found: Counter[str] = Counter()

    def note(path: str) -> Any:
        def beside(layer: nn.Linear, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            d_in, d_out = layer.in_features, layer.out_features
            positions = inputs[0].numel() // d_in
            low_rank = 2 * speed.RANK * (d_in + d_out)
            found["published"] += 2 * positions * d_in * d_out
            found["diffusers attention"] += positions * low_rank
            if path.endswith(TEXT):
                found["text_kv"] += 2 * positions * d_in * d_out
                found["diffusers cross_kv"] += positions * low_rank
                found["tara cross_kv"] += low_rank

        return beside

    for path, layer in unet.named_modules():
        if path.endswith(tuple(f".{name}" for name in ATTENTION_PROJECTIONS)):
            layer.register_forward_hook(note(path))
    flops = speed.counted(lambda: _call(unet, side))[1]
    return {"step": flops, **found}


@torch.no_grad()
def _call(unet: Any, side: int) -> None:
    meta: Any = {"device": "meta"}
    latents = torch.empty(ROWS, unet.config.in_channels, side, side, **meta)
    text = torch.empty(ROWS, TOKENS, unet.config.cross_attention_dim, **meta)
    added: dict[str, Tensor] = {}
    if unet.config.addition_embed_type == "text_time":
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        added = {"text_embeds": torch.empty(ROWS, pooled, **meta), "time_ids": torch.empty(ROWS, 6, **meta)}
    unet(latents, torch.empty(ROWS, **meta), text, added_cond_kwargs=added)


def row_of(family: str) -> dict[str, Any]:
    """One family's counts, and each one's share of a step."""
    counts = count(shape_of(CONFIGS / family / "unet"), OWN_SIDES[family])
    return {
        "family": family,
        "part": "operations of a guided step",
        "case": f"{8 * OWN_SIDES[family]} pixels",
        "flops": counts,
        "share": {name: float(f"{value / counts['step']:.3g}") for name, value in counts.items()},
    }


def main() -> None:
    """Parse, count, write, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=speed.RESULTS / "operation_counts_cpu.json", help="result file")
    chosen = parser.parse_args()
    speed.be_alone()
    speed.write(chosen.out, [row_of(family) for family in OWN_SIDES], checks=())


if __name__ == "__main__":
    main()
