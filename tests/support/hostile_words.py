"""An adapter whose card holds given words."""

from pathlib import Path

import safetensors.torch
import torch

from tara.adapters.card import AdapterCard

LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def adapter(path: Path, words: str) -> Path:
    """Write an adapter of one layer, rank 2, with the words in its card."""
    card = AdapterCard(rare_word=words, class_word=words, family="sd1", rank=2, alpha=2, phrase=words, base=words)
    tensors = {f"{LAYER}.lora_A.weight": torch.ones(2, 6), f"{LAYER}.lora_B.weight": torch.ones(4, 2)}
    safetensors.torch.save_file(tensors, path, {"tara": card.model_dump_json()})
    return path
