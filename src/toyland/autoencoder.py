"""The base's AutoencoderKL: taught to write the patch code and to read it back as a sharp picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from toyland.code import CHANNELS, PATCH, PatchCode
from toyland.precision import half_where_fast
from toyland.render import SIZE


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe:
    """Everything that the autoencoder's training depends on, besides the pictures."""

    steps: int = 4000
    batch_size: int = 16
    learning_rate: float = 2e-3
    crop: int = 32
    """Side of the crops that the first `crop_share` of the steps learn from; whole pictures follow."""
    crop_share: float = 0.7
    deviation: float = 0.02
    """Standard deviation of the encoder's posterior; latents have unit variance."""
    noise: float = 0.08
    """Noise on the latents that the decoder learns from, so that it forgives a diffusion model's small errors."""
    seed: int = 3


def build_autoencoder() -> AutoencoderKL:
    """Four-fold downsampling to 16 latent channels, as the patch code has them."""
    shape: dict[str, Any] = {
        "sample_size": SIZE,
        "latent_channels": CHANNELS,
        "block_out_channels": (32, 48, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
        "norm_num_groups": 16,
        "mid_block_add_attention": False,
        "scaling_factor": 1.0,
    }
    return AutoencoderKL(**shape)


def to_pixels(pictures: np.ndarray) -> Tensor:
    """uint8 (rows, height, width, 3) to float (rows, 3, height, width) in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _posterior(model: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and logarithm of the variance of the latents."""
    posterior = cast(Any, model).encode(pixels).latent_dist
    return posterior.mean, posterior.logvar


def _decoded(model: AutoencoderKL, latents: Tensor) -> Tensor:
    return cast(Any, model).decode(latents).sample


def _loss(model: AutoencoderKL, pixels: Tensor, wanted: Tensor, recipe: AutoencoderRecipe) -> tuple[Tensor, Tensor]:
    """The whole loss and the decoder's part of it.

    The encoder regresses the code `wanted` and a fixed deviation; the decoder's loss is L1 plus squared error.
    """
    with half_where_fast(pixels.device):
        mean, log_variance = _posterior(model, pixels.contiguous(memory_format=torch.channels_last))
        mean = mean.float()
        scale = recipe.noise * torch.rand(len(pixels), 1, 1, 1, device=pixels.device)
        read = _decoded(model, mean.detach() + scale * torch.randn_like(mean)).float()
    written = (mean - wanted).square().mean()
    width = (log_variance.float() - 2 * math.log(recipe.deviation)).square().mean()
    error = read - pixels
    loss = error.abs().mean() + 2 * error.square().mean()
    return loss + written + 0.01 * width, loss.detach()


def train_autoencoder(
    pictures: np.ndarray, code: PatchCode, recipe: AutoencoderRecipe, model: AutoencoderKL, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Train in place; yields (step, decoder loss)."""
    cast(Any, model).to(device=device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, recipe.steps, pct_start=0.05)
    rng = np.random.default_rng(recipe.seed)
    torch.manual_seed(recipe.seed)
    code = code.to(device)
    for step in range(recipe.steps):
        pixels = to_pixels(_cropped(pictures, recipe, step, rng)).to(device)
        loss, decoder_loss = _loss(model, pixels, code.encode(pixels), recipe)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        yield step + 1, decoder_loss


def _cropped(pictures: np.ndarray, recipe: AutoencoderRecipe, step: int, rng: np.random.Generator) -> np.ndarray:
    """A batch of crops at random places on the grid of patches, or of half as many whole pictures at the end."""
    if step >= recipe.crop_share * recipe.steps:
        return pictures[np.sort(rng.choice(len(pictures), recipe.batch_size // 2, replace=False))]
    chosen = np.sort(rng.choice(len(pictures), recipe.batch_size, replace=False))
    corners = rng.integers(0, (SIZE - recipe.crop) // PATCH + 1, (recipe.batch_size, 2)) * PATCH
    return np.stack(
        [pictures[i, y : y + recipe.crop, x : x + recipe.crop] for i, (y, x) in zip(chosen, corners, strict=True)]
    )


@torch.no_grad()
def reconstruct(model: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Encode to the posterior's mean and decode, in -1..1."""
    return _decoded(model, _posterior(model, pixels)[0]).clamp(-1, 1)


def psnr(first: Tensor, second: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pixels in -1..1, over all pictures together."""
    return float(10 * torch.log10(4 / (first - second).square().mean()))
