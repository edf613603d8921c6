"""The base's text encoder: what words mean is learned from captions alone, before any picture is seen.

A text encoder learned together with the U-Net was the brake of the whole training. This one first learns to say, at
every token of a mention, which thing it speaks of and what is known of it: class, colours, pattern, accessory. Every
word of a description then carries its subject, which is what cross-attention needs to bind colours to objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from toyland.labels import IGNORE, MENTION_LABELS, SCENE_LABELS, caption_batch
from toyland.precision import half_where_fast
from toyland.tokenizer import MAX_TOKENS

WIDTH = 128


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Three layers of CLIP's causal transformer, with random weights."""
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "projection_dim": WIDTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextModel(CLIPTextConfig(**shape))


class Reader(nn.Module):
    """One linear question per label on the text encoder's last hidden state."""

    def __init__(self) -> None:
        super().__init__()
        options = {**MENTION_LABELS, **SCENE_LABELS}
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, len(values)) for name, values in options.items()})

    def logits(self, name: str, hidden: Tensor) -> Tensor:
        """Of each answer to one question, at each token: (rows, tokens, answers)."""
        return self.heads[name](hidden)

    def loss(self, hidden: Tensor, labels: dict[str, Tensor]) -> Tensor:
        """Mean over labels of the cross-entropy over tokens; `hidden` is (rows, tokens, width)."""
        losses = [
            nn.functional.cross_entropy(self.logits(name, hidden).flatten(0, 1), truth.flatten(), ignore_index=IGNORE)
            for name, truth in labels.items()
        ]
        return torch.stack(losses).mean()


@dataclass(frozen=True, kw_only=True)
class TextRecipe:
    """Everything that the text encoder's training depends on, besides the world's captions."""

    steps: int = 2500
    batch_size: int = 64
    learning_rate: float = 2e-3
    seed: int = 5


def train_text_encoder(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, recipe: TextRecipe, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Train in place; yields (step, loss). One step in eight sees the full length, so that padding is familiar too."""
    reader = Reader().to(device)
    nn.Module.to(encoder, device)
    parameters = [*encoder.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, recipe.steps, pct_start=0.1)
    rng = np.random.default_rng(recipe.seed)
    for step in range(recipe.steps):
        batch = caption_batch(rng, tokenizer, recipe.batch_size, MAX_TOKENS if step % 8 == 0 else 56)
        with half_where_fast(device):
            hidden = encoder(batch.ids.to(device)).last_hidden_state
            loss = reader.loss(hidden, {name: truth.to(device) for name, truth in batch.labels.items()})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        yield step + 1, loss.detach()
