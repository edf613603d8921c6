"""How many operations does a denoising step take, and what are the shares of the text and of the adapters?

    python benchmarks/operation_counts.py     writes benchmarks/results/operation_counts_cpu.json

Floating-point operations of one guided U-Net call (two rows, 77 tokens) at each family's own size, counted on the meta
device: nothing is computed, so neither memory nor a GPU matters. Adapters have rank 8.

- `text_kv`: the text's keys and values, which a stock pipeline computes at every step and tara once per prompt;
- `tara cross_kv`: what one adapter adds, once per prompt: its word's token, in every cross-attention;
- `diffusers cross_kv`, `diffusers attention`: what one adapter adds to every step when its factors stay beside layers;
- `published`: the same for a dense matrix beside every attention projection.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import speed_shared as speed
import torch
from result_files import command_line
from torch import Tensor, nn

from tara.families.single_file import CONFIGS
from tara.families.stable_diffusion import SD1

OWN_SIDES = {"sd1": 64, "sd2": 96, "sdxl": 128}
"""Latents per side of a family's own images (of SD 2.x, of the larger ones)."""
ROWS, TOKENS = 2, 77


def shape_of(configs: Path) -> Any:
    """A U-Net of a published shape, on the meta device."""
    unet = diffusers.UNet2DConditionModel
    with torch.device("meta"):
        return unet.from_config(unet.load_config(configs))


def count(unet: Any, side: int) -> dict[str, int]:
    """The operations of a guided call, and those of adapters beside its layers, in all."""
    counts: Counter[str] = Counter()

    def note(path: str) -> Any:
        def beside(layer: nn.Linear, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            d_in, d_out = layer.in_features, layer.out_features
            positions = inputs[0].numel() // d_in
            low_rank = 2 * speed.RANK * (d_in + d_out)
            counts["published"] += 2 * positions * d_in * d_out
            counts["diffusers attention"] += positions * low_rank
            if path.endswith(SD1.text_kv_paths):
                counts["text_kv"] += 2 * positions * d_in * d_out
                counts["diffusers cross_kv"] += positions * low_rank
                counts["tara cross_kv"] += low_rank

        return beside

    for path, layer in unet.named_modules():
        if path.endswith(tuple(f".{name}" for name in SD1.attention_projections)):
            layer.register_forward_hook(note(path))
    flops = speed.counted(lambda: _call(unet, side))[1]
    return {"step": flops, **counts}


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
    """The command line."""
    args = command_line(__doc__, "operation_counts_cpu.json").parse_args()
    speed.set_up_process()
    speed.write(args.out, [row_of(family) for family in OWN_SIDES], checks=())


if __name__ == "__main__":
    main()
