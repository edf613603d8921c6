"""The training of the base's U-Net on latents of rendered scenes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from toyland.autoencoder import to_pixels
from toyland.captions import caption
from toyland.code import PATCH, PatchCode
from toyland.denoiser_state import DenoiserRecipe, TrainingState
from toyland.precision import half_where_fast
from toyland.processes import average, number
from toyland.reader_net import ReaderNet
from toyland.reading import LABELS, ThingLabels, clean_estimate, noise_weights, reading_loss, thing_labels
from toyland.render import SIZE
from toyland.scenes import scene_number
from toyland.shapes import SHAPES
from toyland.unet import build_scheduler
from toyland.world import TRAINING_SCENES, Scene, SceneDistribution


@dataclass(frozen=True, kw_only=True)
class Material:
    """What the U-Net learns from: pictures, the series of scenes that they show, the frozen parts in front of it."""

    pictures: np.ndarray
    scene_seed: int
    code: PatchCode
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    distribution: SceneDistribution = TRAINING_SCENES
    reader: ReaderNet | None = None
    """Frozen; needed where the recipe's `reading_weight` is not 0."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A batch as NumPy arrays: torch's own threads in the preparing thread would slow down those of the training."""

    pictures: np.ndarray
    ids: np.ndarray
    weights: np.ndarray
    """Weight of the loss at each latent, (rows, 1, height, width)."""
    things: np.ndarray
    """What the captions name of each thing, an array of `reading.LABELS`; empty where no reader is asked."""


def _batch(material: Material, recipe: DenoiserRecipe, step: int) -> Example:
    """Pictures and captions of one step, a function of (seed, step, process). No torch in here: see `Example`."""
    rng = np.random.default_rng([recipe.seed, step, number()])
    chosen = np.sort(rng.choice(len(material.pictures), recipe.batch_size, replace=False))
    scenes = [scene_number(material.scene_seed, int(index), material.distribution) for index in chosen]
    captions = [caption(scene, rng) for scene in scenes]
    said = [None if rng.random() < recipe.caption_dropout else one for one in captions]
    texts = [one.text if one else "" for one in said]
    ids = material.tokenizer(texts, padding="max_length", truncation=True, return_tensors="np")["input_ids"]
    weights = _latent_weights(scenes, recipe.thing_weight, recipe.accessory_weight)
    things = thing_labels(scenes, said) if recipe.reading_weight else np.empty(0, LABELS)
    return Example(pictures=material.pictures[chosen], ids=np.asarray(ids), weights=weights, things=things)


def _latent_weights(scenes: Sequence[Scene], thing_weight: float, accessory_weight: float) -> np.ndarray:
    """1 on the background, more on things: small, but what a picture is about; most on their accessories."""
    side = SIZE // PATCH
    weights = np.ones((len(scenes), 1, side, side), np.float32)

    def weigh(row: int, x: float, y: float, reach: tuple[float, float, float], weight: float) -> None:
        """On the box that reaches so far to both sides, up and down from a point."""
        aside, up, down = reach
        edges = (y - up, y + down, x - aside, x + aside)
        top, bottom, left, right = (int(np.clip(round(edge * side), 0, side)) for edge in edges)
        weights[row, 0, top:bottom, left:right] = weight

    for row, scene in enumerate(scenes):
        for thing in scene.things:
            weigh(row, thing.x, thing.y, (1.2 * thing.size, 1.7 * thing.size, 1.2 * thing.size), thing_weight)
        for thing in scene.things:
            if thing.look.accessory != "none":
                x, y = (
                    at + part * thing.size for at, part in zip((thing.x, thing.y), SHAPES[thing.kind].top, strict=True)
                )
                weigh(row, x, y, (0.7 * thing.size, 0.75 * thing.size, 0.15 * thing.size), accessory_weight)
    return weights


@dataclass(frozen=True, kw_only=True)
class Noised:
    """Noisy latents (rows, channels, height, width), their timesteps, and what the U-Net should make of them."""

    latents: Tensor
    timesteps: Tensor
    target: Tensor


def _noised(latents: Tensor, alphas: Tensor, recipe: DenoiserRecipe, step: int) -> Noised:
    """Add noise at random timesteps, both functions of (seed, step, process).

    The target is the velocity. Timesteps are drawn as often as min-SNR weighting for it (Hang et al., 2023), kept up at
    high noise, would weigh them: the same loss on average, and no step spent on noise that hardly counts.
    """
    generator = torch.Generator().manual_seed((recipe.seed << 40) + (step << 8) + number())
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    snr = alphas / (1 - alphas)
    weights = snr.clamp(recipe.least_snr, recipe.snr_gamma) / (snr + 1)
    timesteps = torch.multinomial(weights.cpu(), len(latents), replacement=True, generator=generator).to(latents.device)
    alpha = alphas[timesteps][:, None, None, None]
    signal, noise_level = alpha.sqrt(), (1 - alpha).sqrt()
    return Noised(
        latents=(signal * latents + noise_level * noise).contiguous(memory_format=torch.channels_last),
        timesteps=timesteps,
        target=signal * noise - noise_level * latents,
    )


def _predicted(unet: UNet2DConditionModel, text_encoder: CLIPTextModel, ids: Tensor, noised: Noised) -> Tensor:
    """The velocity that the U-Net predicts."""
    with half_where_fast(ids.device):
        with torch.no_grad():
            hidden = text_encoder(ids).last_hidden_state
        predicted: Tensor = unet(noised.latents, noised.timesteps, hidden).sample
    return predicted.float()


def _squared_error(predicted: Tensor, target: Tensor, places: Tensor) -> Tensor:
    """Mean over rows of the squared error; `places` (rows, 1, height, width) weighs latents within a row."""
    error = (predicted - target).square()
    return ((places * error).mean((1, 2, 3)) / places.mean((1, 2, 3))).mean()


def _reading_error(
    reader: ReaderNet, things: ThingLabels, predicted: Tensor, noised: Noised, alpha: Tensor, recipe: DenoiserRecipe
) -> Tensor:
    """The reader's error on the clean latents that `predicted` implies; `alpha` (rows,) is that of the timesteps."""
    estimate = clean_estimate(noised.latents, predicted, alpha)
    with half_where_fast(predicted.device):
        answers = reader(estimate, things.rows, things.places)
    weights = noise_weights(alpha / (1 - alpha), recipe.reading_full_snr, recipe.reading_most_snr)
    return reading_loss(answers, things, weights[things.rows])


def _update(state: TrainingState, recipe: DenoiserRecipe, step: int) -> None:
    """One step of the optimizer, clipped, and of the moving average; at times the mean over all processes."""
    parameters = [*state.unet.parameters()]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for group in state.optimizer.param_groups:
        group["lr"] = recipe.rate(step)
    state.optimizer.step()
    state.optimizer.zero_grad()
    decay = min(recipe.ema_decay, (step + 1) / (step + 10))
    averages = [state.average[name] for name, _ in state.unet.named_parameters()]
    # one call for all parameters: four hundred single ones take longer than the arithmetic
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        averages, [parameter.detach() for parameter in parameters], 1 - decay
    )
    if (step + 1) % recipe.average_every == 0:
        average(state.tensors())


def train_unet(
    material: Material, recipe: DenoiserRecipe, state: TrainingState, start: int, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Train in place from step `start`; yields (step, loss). A step's batch is a function of (seed, step, process).

    Several processes have the same weights after every `average_every` steps.
    """
    if recipe.reading_weight and material.reader is None:
        raise ValueError(f"reading_weight = {recipe.reading_weight} needs a reader; train one first")
    alphas = build_scheduler().alphas_cumprod.to(device)
    code = material.code.to(device)
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(_batch, material, recipe, start)
        for step in range(start, recipe.steps):
            batch = coming.result()
            coming = ahead.submit(_batch, material, recipe, step + 1)
            latents = code.encode(to_pixels(batch.pictures).to(device))
            noised = _noised(latents, alphas, recipe, step)
            ids, places = (torch.from_numpy(array).to(device) for array in (batch.ids, batch.weights))
            predicted = _predicted(state.unet, material.text_encoder, ids, noised)
            loss = _squared_error(predicted, noised.target, places)
            if recipe.reading_weight and material.reader is not None:
                things = ThingLabels.of(batch.things, device)
                read = _reading_error(material.reader, things, predicted, noised, alphas[noised.timesteps], recipe)
                loss = loss + recipe.reading_weight * read
            loss.backward()
            _update(state, recipe, step)
            yield step + 1, loss.detach()
