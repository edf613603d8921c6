"""The training of the base's U-Net on latents of rendered scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from toyland.autoencoder import to_pixels
from toyland.captions import caption
from toyland.code import PATCH, PatchCode
from toyland.precision import half_where_fast
from toyland.processes import average, number
from toyland.render import SIZE
from toyland.scenes import scene_number
from toyland.shapes import SHAPES
from toyland.unet import build_scheduler, build_unet
from toyland.world import Scene


@dataclass(frozen=True, kw_only=True)
class DenoiserRecipe:
    """Everything that the U-Net's training depends on, besides the scenes."""

    batch_size: int = 16
    learning_rate: float = 6e-4
    warmup_steps: int = 500
    constant_steps: int = 20_000
    decay_steps: int = 4_000
    """The rate falls linearly to zero in the last `decay_steps`; the constant part can be lengthened at any time."""
    snr_gamma: float = 5.0
    least_snr: float = 0.4
    """Weights of the loss do not fall below this signal-to-noise ratio's: at high noise text decides most."""
    thing_weight: float = 4.0
    """Weight of the loss on things; 1 on the background."""
    accessory_weight: float = 16.0
    """Weight of the loss on accessories: the smallest part of a thing, and the last to be learned."""
    caption_dropout: float = 0.1
    ema_decay: float = 0.9993
    average_every: int = 25
    """Steps after which several processes go on from the mean of their weights, moments and moving averages."""
    seed: int = 7

    @property
    def steps(self) -> int:
        """All steps of the training."""
        return self.constant_steps + self.decay_steps

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * warm * min(1.0, max(0.0, (self.steps - step) / self.decay_steps))


@dataclass(frozen=True, kw_only=True)
class Material:
    """What the U-Net learns from: pictures, the series of scenes that they show, the frozen parts in front of it."""

    pictures: np.ndarray
    scene_seed: int
    code: PatchCode
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """What a checkpoint holds, in plain tensors."""

    unet: UNet2DConditionModel
    average: dict[str, Tensor]
    optimizer: torch.optim.AdamW

    def tensors(self) -> list[Tensor]:
        """Weights, moving averages and moments: all that training changes, besides the counts of steps."""
        weights = [parameter.detach() for parameter in self.unet.parameters()]
        entries = self.optimizer.state.values()
        return [
            *weights, *self.average.values(), *(entry[name] for name in ("exp_avg", "exp_avg_sq") for entry in entries)
        ]  # fmt: skip

    def save(self, path: Path, step: int) -> None:
        """Write everything after `step` steps, whole or not at all."""
        tensors = {f"unet.{name}": value for name, value in self.unet.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in entry.items()}
        partial = path.with_suffix(".partial")
        save_file(
            {name: value.detach().contiguous().clone() for name, value in tensors.items()}, partial, {"step": str(step)}
        )
        partial.replace(path)

    def load(self, path: Path) -> int:
        """Fill everything in place; returns the number of steps done."""
        tensors, step = load_file(path), _steps_done(path)
        self.unet.load_state_dict({k.removeprefix("unet."): v for k, v in tensors.items() if k.startswith("unet.")})
        for name, value in self.average.items():
            value.copy_(tensors[f"average.{name}"])
        parameters = [*self.unet.parameters()]
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                entries.setdefault(int(index), {})[name] = _laid_out_as(parameters[int(index)], value)
        self.optimizer.load_state_dict({"state": entries, "param_groups": self.optimizer.state_dict()["param_groups"]})
        return step


def _steps_done(path: Path) -> int:
    with safe_open(path, "np") as file:
        return int(file.metadata()["step"])


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A moment in its parameter's memory layout: the fused optimiser walks both in the order of memory, unchecked."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value


def new_state(
    recipe: DenoiserRecipe, device: torch.device, build: Callable[[], UNet2DConditionModel] = build_unet
) -> TrainingState:
    """The state before the first step, a function of the recipe's seed."""
    torch.manual_seed(recipe.seed)
    unet = build()
    cast(Any, unet).to(device=device, memory_format=torch.channels_last)
    if device.type == "cpu":  # the fused attention's backward pass takes a quarter of a step on a CPU
        unet.set_attn_processor(AttnProcessor())
    optimizer = torch.optim.AdamW(
        unet.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    average = {name: value.detach().clone() for name, value in unet.named_parameters()}
    return TrainingState(unet=unet, average=average, optimizer=optimizer)


@dataclass(frozen=True, kw_only=True)
class Example:
    """A batch as NumPy arrays: torch's own threads in the preparing thread would slow down those of the training."""

    pictures: np.ndarray
    ids: np.ndarray
    weights: np.ndarray
    """Weight of the loss at each latent, (rows, 1, height, width)."""


def _batch(material: Material, recipe: DenoiserRecipe, step: int) -> Example:
    """Pictures and captions of one step, a function of (seed, step, process). No torch in here: see `Example`."""
    rng = np.random.default_rng([recipe.seed, step, number()])
    chosen = np.sort(rng.choice(len(material.pictures), recipe.batch_size, replace=False))
    scenes = [scene_number(material.scene_seed, int(index)) for index in chosen]
    texts = [caption(scene, rng).text for scene in scenes]
    texts = ["" if rng.random() < recipe.caption_dropout else text for text in texts]
    ids = material.tokenizer(texts, padding="max_length", truncation=True, return_tensors="np")["input_ids"]
    weights = _latent_weights(scenes, recipe.thing_weight, recipe.accessory_weight)
    return Example(pictures=material.pictures[chosen], ids=np.asarray(ids), weights=weights)


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


def _loss(
    unet: UNet2DConditionModel, text_encoder: CLIPTextModel, ids: Tensor, noised: Noised, places: Tensor
) -> Tensor:
    """Mean over rows of the squared error; `places` (rows, 1, height, width) weighs latents within a row."""
    with half_where_fast(ids.device):
        with torch.no_grad():
            hidden = text_encoder(ids).last_hidden_state
        predicted: Tensor = unet(noised.latents, noised.timesteps, hidden).sample
    error = (predicted.float() - noised.target).square()
    return ((places * error).mean((1, 2, 3)) / places.mean((1, 2, 3))).mean()


def _update(state: TrainingState, recipe: DenoiserRecipe, step: int) -> None:
    """One step of the optimiser, clipped, and of the moving average; at times the mean over all processes."""
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
            loss = _loss(state.unet, material.text_encoder, ids, noised, places)
            loss.backward()
            _update(state, recipe, step)
            yield step + 1, loss.detach()
