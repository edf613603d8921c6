"""How the reader learns: from latents of rendered scenes, most of them spoiled as a diffusion model's estimates are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from toyland.autoencoder import to_pixels
from toyland.captions import caption
from toyland.code import PatchCode
from toyland.labels import IGNORE
from toyland.precision import half_where_fast
from toyland.reader_net import COLOR_PARTS, QUESTIONS, ReaderNet
from toyland.reading import ThingLabels, clean_estimate, reading_loss, thing_labels
from toyland.unet import build_scheduler
from toyland.world import COLORS, Scene


@dataclass(frozen=True, kw_only=True)
class ReaderRecipe:
    """Everything that the reader's training depends on, besides the scenes."""

    steps: int = 6000
    batch_size: int = 24
    learning_rate: float = 1.5e-3
    noise: float = 0.5
    """Largest standard deviation of the noise on the latents, which have unit variance."""
    blurred_share: float = 0.4
    estimated_share: float = 0.34
    """Share of the latents that are the U-Net's estimates."""
    least_snr: float = 1.0
    """Least signal-to-noise ratio of what the U-Net estimates from: with more noise it invents what it cannot see, and
    the reader would learn to guess the truth instead of naming what is there."""
    shift: float = 0.08
    """Largest error of a thing's place and size, as a share of its size: generated things do not lie exactly there."""
    seed: int = 29


Estimate = Callable[[Tensor, Sequence[Scene], np.random.Generator], Tensor]
"""Clean latents and their scenes to a U-Net's estimates of these latents from noisy ones."""


def estimator(
    unet: UNet2DConditionModel, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, least_snr: float
) -> Estimate:
    """Estimates by a U-Net that reads random captions, at random timesteps with at least that signal-to-noise ratio."""
    alphas = build_scheduler().alphas_cumprod
    timesteps = torch.nonzero(alphas / (1 - alphas) >= least_snr)[:, 0].numpy()

    @torch.no_grad()
    def estimate(latents: Tensor, scenes: Sequence[Scene], rng: np.random.Generator) -> Tensor:
        texts = [caption(scene, rng).text for scene in scenes]
        ids: Any = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        at = torch.from_numpy(rng.choice(timesteps, len(latents)))
        noise = torch.from_numpy(rng.standard_normal(latents.shape, np.float32)).to(latents.device)
        alpha = alphas[at].to(latents.device)
        signal, level = alpha.sqrt()[:, None, None, None], (1 - alpha).sqrt()[:, None, None, None]
        noisy = signal * latents + level * noise
        with half_where_fast(latents.device):
            hidden = text_encoder(ids["input_ids"].to(latents.device)).last_hidden_state
            velocity: Tensor = unet(noisy, at.to(latents.device), hidden).sample
        return clean_estimate(noisy, velocity.float(), alpha)

    return estimate


def train_reader(
    pictures: np.ndarray,
    scene: Callable[[int], Scene],
    code: PatchCode,
    estimate: Estimate,
    recipe: ReaderRecipe,
    model: ReaderNet,
    device: torch.device,
) -> Iterator[tuple[int, Tensor]]:
    """Train in place; yields (step, loss). `scene` tells what an image of `pictures` shows, by its index."""
    cast(Any, model.train()).to(device=device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, recipe.steps, pct_start=0.1)
    rng = np.random.default_rng(recipe.seed)
    code = code.to(device)
    for step in range(recipe.steps):
        chosen = np.sort(rng.choice(len(pictures), recipe.batch_size, replace=False))
        scenes = [scene(int(index)) for index in chosen]
        latents = spoiled(code.encode(to_pixels(pictures[chosen]).to(device)), scenes, estimate, recipe, rng)
        labels = ThingLabels.of(thing_labels(scenes), device)
        with half_where_fast(device):
            answers = model(latents, labels.rows, _shifted(labels.places, recipe.shift, rng))
        loss = reading_loss(answers, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        yield step + 1, loss.detach()


def spoiled(
    latents: Tensor, scenes: Sequence[Scene], estimate: Estimate, recipe: ReaderRecipe, rng: np.random.Generator
) -> Tensor:
    """The first rows as the U-Net estimates them, the others noisy and some of those blurred first."""
    estimated = round(recipe.estimated_share * len(latents))
    rest = latents[estimated:]
    levels = rng.uniform(0, recipe.noise, len(rest)) * (rng.random(len(rest)) < 0.8)  # one in five without any noise
    blur = rng.random(len(rest)) * (rng.random(len(rest)) < recipe.blurred_share)
    noise = rng.standard_normal(rest.shape, np.float32)
    level, blend = (
        torch.from_numpy(values.astype(np.float32)).to(latents.device)[:, None, None, None] for values in (levels, blur)
    )
    rest = torch.lerp(rest, nn.functional.avg_pool2d(rest, 3, 1, 1, count_include_pad=False), blend)
    rest = rest + level * torch.from_numpy(noise).to(latents.device)
    return torch.cat([estimate(latents[:estimated], scenes[:estimated], rng), rest]) if estimated else rest


def _shifted(places: Tensor, most: float, rng: np.random.Generator) -> Tensor:
    """Places with errors in `x`, `y` and size of at most that share of the size."""
    errors = torch.from_numpy(rng.uniform(-most, most, tuple(places.shape)).astype(np.float32)).to(places.device)
    return places + errors * places[:, 2:]


@torch.no_grad()
def reader_shares(model: ReaderNet, latents: Tensor, labels: ThingLabels) -> dict[str, float]:
    """Shares of things whose class, colours, pattern and accessory are named rightly.

    `body position` and so on: the colour name nearest to the reader's continuous answer is the right one.
    """
    answers = model.eval()(latents, labels.rows, labels.places)
    centers = torch.tensor(list(COLORS.values()), device=latents.device) / 127.5 - 1
    shares: dict[str, float] = {}
    for index, name in enumerate(QUESTIONS):
        truth = labels.names[:, index]
        asked = truth != IGNORE
        chosen = {name: answers.names[name].argmax(1)}
        if name in COLOR_PARTS:
            chosen[f"{name} position"] = torch.cdist(answers.colors[:, COLOR_PARTS.index(name)], centers).argmin(1)
        for question, answer in chosen.items():
            shares[question] = float((answer == truth)[asked].float().mean())
    return shares
