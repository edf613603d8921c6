"""The base's U-Net: its shape, its noise schedule, and latents drawn with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from toyland.code import CHANNELS, PATCH
from toyland.render import SIZE
from toyland.text import WIDTH


def build_unet() -> UNet2DConditionModel:
    """Three resolutions, 16, 8 and 4; text is read at the lower two."""
    channels = (64, 128, 192)
    shape: dict[str, Any] = {
        "sample_size": SIZE // PATCH,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "block_out_channels": channels,
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": tuple(width // 32 for width in channels),
        "norm_num_groups": 16,
    }
    return UNet2DConditionModel(**shape)


def build_scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion with v prediction, rescaled to end in nothing but noise.

    Otherwise the mean of the noise that drawing starts from passes for the picture's mean colour (Lin et al., 2024,
    arXiv 2305.08891), and colours are what a prompt most often fails to steer.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


@torch.no_grad()
def draw_latents(
    unet: UNet2DConditionModel,
    prompt: Tensor,
    empty: Tensor,
    seeds: Sequence[int],
    guidance: float = 4.0,
    steps: int = 25,
) -> Tensor:
    """Latents for rows of text embeddings (rows, tokens, width) by DDIM with classifier-free guidance."""
    scheduler: Any = build_scheduler()
    scheduler.set_timesteps(steps)
    shape = (CHANNELS, SIZE // PATCH, SIZE // PATCH)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    latents = torch.stack(noise).to(prompt.device)
    text = torch.cat([empty.expand_as(prompt), prompt])
    for timestep in scheduler.timesteps:
        unconditional, conditional = unet(torch.cat([latents, latents]), timestep, text).sample.chunk(2)
        guided = unconditional + guidance * (conditional - unconditional)
        latents = scheduler.step(guided, timestep, latents).prev_sample
    return latents
