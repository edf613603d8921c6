"""The base's tokenizer and text encoder: what words mean is learned from captions alone, before any picture is seen.

A text encoder learned together with the U-Net was the brake of the whole training. This one first learns to say, at every
token of a mention, which thing it speaks of and what is known of it: class, colours, pattern, accessory. Every word of a
description then carries its subject, which is what cross-attention needs to bind colours to objects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from toyland.captions import FEATURES, Caption, caption
from toyland.world import ACCESSORIES, BACKGROUNDS, CLASSES, COLORS, NAMED_STYLES, PATTERNS, Scene, random_scene

WIDTH = 128
MAX_TOKENS = 77
START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(folder: Path, seed: int = 0) -> CLIPTokenizer:
    """A CLIP tokenizer whose whole words are the captions' own; any other word falls into pieces."""
    rng = np.random.default_rng(seed)
    corpus = [caption(random_scene(rng), rng).text for _ in range(4000)]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    words = sorted({word for text in corpus for word in text.replace(",", " ,").split() if len(word) != 0})
    known = [word for word in words if sum(word in text.split() for text in corpus[:1500]) > 2 or word == ","]
    trainer = trainers.BpeTrainer(vocab_size=2000, end_of_word_suffix="</w>", min_frequency=1, show_progress=False)
    bpe.train_from_iterator(known, trainer)
    merges: list[Any] = json.loads(bpe.to_str())["model"]["merges"]
    pairs = [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [
        *alphabet,
        *(symbol + "</w>" for symbol in alphabet),
        *(pair.replace(" ", "") for pair in pairs),
        START,
        END,
    ]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=MAX_TOKENS
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


IGNORE = -100
COLOR_NAMES = (*COLORS, "unsaid")
MENTION_LABELS: dict[str, tuple[str, ...]] = {
    "thing": ("first", "second", "third"),
    "class": CLASSES,
    "body": COLOR_NAMES,
    "second": COLOR_NAMES,
    "third": COLOR_NAMES,
    "pattern": (*PATTERNS, "unsaid"),
    "accessory": (*ACCESSORIES, "unsaid"),
}
SCENE_LABELS: dict[str, tuple[str, ...]] = {
    "background": (*BACKGROUNDS, "unsaid"),
    "style": ("none", *NAMED_STYLES),
    **{f"class {index}": (*CLASSES, "absent") for index in range(3)},
}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Captions as tokens, and for each label name what is true at each token (`IGNORE` where the question has no sense)."""

    ids: Tensor
    labels: dict[str, Tensor]


def _mention_answers(scene: Scene, index: int, named: frozenset[str]) -> dict[str, str]:
    thing = scene.things[index]
    body, second, third = thing.look.color_names()
    values = {
        "body": body,
        "second": second,
        "third": third,
        "pattern": thing.look.pattern,
        "accessory": thing.look.accessory,
    }
    said = {name: values[name] if name in named else "unsaid" for name in FEATURES}
    if said["accessory"] in ("none", "unsaid"):
        said["third"] = "unsaid"
    if said["pattern"] == "plain" and "second" not in named:
        said["pattern"] = "unsaid"  # "a brown cat" does not say that it is plain
    if said["accessory"] == "none":
        said["accessory"] = "unsaid"
    return {"thing": MENTION_LABELS["thing"][index], "class": thing.kind, **said}


def label(scenes: list[Scene], captions: list[Caption], tokenizer: CLIPTokenizer, length: int) -> Batch:
    """Tokens (rows, length) and, for each label, the index of the right answer at each token, (rows, length)."""
    coded = tokenizer(
        [c.text for c in captions],
        padding="max_length",
        truncation=True,
        max_length=length,
        return_offsets_mapping=True,
    )
    rows = len(captions)
    labels = {name: np.full((rows, length), IGNORE) for name in (*MENTION_LABELS, *SCENE_LABELS)}
    for row, (scene, said) in enumerate(zip(scenes, captions, strict=True)):
        offsets = np.asarray(coded["offset_mapping"][row])
        answers = {
            "background": scene.background if said.names_background else "unsaid",
            "style": scene.style if said.names_style else "none",
        }
        for index in range(3):
            answers[f"class {index}"] = scene.things[index].kind if index < len(scene.things) else "absent"
        end = max(mention.end for mention in said.mentions)
        known = (offsets[:, 0] >= end) | (offsets[:, 1] == 0)  # a causal encoder knows the scene after its last mention
        known[0] = False
        for name, answer in answers.items():
            labels[name][row, known] = SCENE_LABELS[name].index(answer)
        for mention in said.mentions:
            inside = (offsets[:, 0] >= mention.start) & (offsets[:, 1] <= mention.end) & (offsets[:, 1] > 0)
            for name, answer in _mention_answers(scene, mention.thing, mention.named).items():
                labels[name][row, inside] = MENTION_LABELS[name].index(answer)
    return Batch(ids=torch.tensor(coded["input_ids"]), labels={name: torch.from_numpy(v) for name, v in labels.items()})


class Reader(nn.Module):
    """One linear question per label on the text encoder's last hidden state."""

    def __init__(self) -> None:
        super().__init__()
        options = {**MENTION_LABELS, **SCENE_LABELS}
        self.heads = nn.ModuleDict(
            {name.replace(" ", "_"): nn.Linear(WIDTH, len(values)) for name, values in options.items()}
        )

    def loss(self, hidden: Tensor, labels: dict[str, Tensor]) -> Tensor:
        """Mean over labels of the cross-entropy over tokens; `hidden` is (rows, tokens, width)."""
        losses = [
            nn.functional.cross_entropy(
                self.heads[name.replace(" ", "_")](hidden).flatten(0, 1), truth.flatten(), ignore_index=IGNORE
            )
            for name, truth in labels.items()
        ]
        return torch.stack(losses).mean()

    def accuracy(self, hidden: Tensor, labels: dict[str, Tensor]) -> dict[str, float]:
        """Share of right answers at the last token of each mention (all tokens for scene labels)."""
        found: dict[str, float] = {}
        for name, truth in labels.items():
            asked = truth != IGNORE
            if name in MENTION_LABELS:
                asked = asked & ~torch.cat([asked[:, 1:], torch.zeros_like(asked[:, :1])], 1)
            right = self.heads[name.replace(" ", "_")](hidden).argmax(-1) == truth
            found[name] = float(right[asked].float().mean())
        return found


def caption_batch(rng: np.random.Generator, tokenizer: CLIPTokenizer, rows: int, length: int = 64) -> Batch:
    scenes = [random_scene(rng, (0.3, 0.45, 0.25)) for _ in range(rows)]
    return label(scenes, [caption(scene, rng) for scene in scenes], tokenizer, length)


@dataclass(frozen=True, kw_only=True)
class TextRecipe:
    steps: int = 2500
    batch_size: int = 64
    learning_rate: float = 2e-3
    seed: int = 5


def train_text_encoder(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, recipe: TextRecipe, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Train in place; yields (step, loss). One step in eight sees the full length, so that padding is familiar too."""
    reader = Reader().to(device)
    encoder.to(device)
    parameters = [*encoder.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, recipe.steps, pct_start=0.1)
    rng = np.random.default_rng(recipe.seed)
    for step in range(recipe.steps):
        batch = caption_batch(rng, tokenizer, recipe.batch_size, MAX_TOKENS if step % 8 == 0 else 56)
        with torch.autocast(device.type, torch.bfloat16):
            hidden = encoder(batch.ids.to(device)).last_hidden_state
            loss = reader.loss(hidden, {name: truth.to(device) for name, truth in batch.labels.items()})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        yield step + 1, loss.detach()
