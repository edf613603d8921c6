"""The base's U-Net: its shape, and its training on latents of rendered scenes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from toyland.autoencoder import to_pixels
from toyland.captions import caption
from toyland.code import CHANNELS, PATCH, PatchCode
from toyland.render import SIZE
from toyland.scenes import scene_number
from toyland.text import WIDTH
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
    thing_weight: float = 4.0
    caption_dropout: float = 0.1
    ema_decay: float = 0.9993
    seed: int = 7

    @property
    def steps(self) -> int:
        return self.constant_steps + self.decay_steps

    def rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * warm * min(1.0, max(0.0, (self.steps - step) / self.decay_steps))


def build_unet() -> UNet2DConditionModel:
    """Three resolutions, 16, 8 and 4; text is read at the lower two."""
    channels = (64, 128, 192)
    return UNet2DConditionModel(
        sample_size=SIZE // PATCH,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=tuple(width // 32 for width in channels),
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """What a checkpoint holds, in plain tensors."""

    unet: UNet2DConditionModel
    average: dict[str, Tensor]
    optimizer: torch.optim.AdamW

    def save(self, path: Path, step: int) -> None:
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
        tensors = load_file(path)
        self.unet.load_state_dict({k.removeprefix("unet."): v for k, v in tensors.items() if k.startswith("unet.")})
        for name, value in self.average.items():
            value.copy_(tensors[f"average.{name}"])
        state = self.optimizer.state_dict()
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                entries.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({"state": entries, "param_groups": state["param_groups"]})
        return int(next(iter(entries.values()))["step"].item())


@dataclass(frozen=True, kw_only=True)
class Example:
    """A batch as NumPy arrays: torch's own threads in the preparing thread would slow down those of the training."""

    pictures: np.ndarray
    ids: np.ndarray
    weights: np.ndarray
    """Weight of the loss at each latent, (rows, 1, height, width)."""


def _batch(
    pictures: np.ndarray, scene_seed: int, tokenizer: CLIPTokenizer, recipe: DenoiserRecipe, step: int
) -> Example:
    rng = np.random.default_rng([recipe.seed, step])
    chosen = np.sort(rng.choice(len(pictures), recipe.batch_size, replace=False))
    scenes = [scene_number(scene_seed, int(index)) for index in chosen]
    texts = [caption(scene, rng).text for scene in scenes]
    texts = ["" if rng.random() < recipe.caption_dropout else text for text in texts]
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="np")["input_ids"]
    return Example(pictures=pictures[chosen], ids=ids, weights=_latent_weights(scenes, recipe.thing_weight))


def _latent_weights(scenes: Sequence[Scene], thing_weight: float) -> np.ndarray:
    """1 on the background and `thing_weight` on things: small, but what a picture is about."""
    side = SIZE // PATCH
    weights = np.ones((len(scenes), 1, side, side), np.float32)
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            reach = 1.2 * thing.size
            corners = (thing.x - reach, thing.y - 1.7 * thing.size, thing.x + reach, thing.y + reach)
            left, top, right, bottom = (int(np.clip(round(corner * side), 0, side)) for corner in corners)
            weights[row, 0, top:bottom, left:right] = thing_weight
    return weights


def train_unet(
    pictures: np.ndarray,
    scene_seed: int,
    code: PatchCode,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    recipe: DenoiserRecipe,
    state: TrainingState,
    start: int,
    device: torch.device,
) -> Iterator[tuple[int, Tensor]]:
    """Train in place from step `start`; yields (step, loss). The batch of a step is a function of (seed, step)."""
    scheduler = build_scheduler()
    alphas = scheduler.alphas_cumprod.to(device)
    unet, parameters = state.unet, [*state.unet.parameters()]
    code = PatchCode(**{name: value.to(device) for name, value in code.tensors().items()})
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(_batch, pictures, scene_seed, tokenizer, recipe, start)
        for step in range(start, recipe.steps):
            batch = coming.result()
            coming = ahead.submit(_batch, pictures, scene_seed, tokenizer, recipe, step + 1)
            generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
            latents = code.encode(to_pixels(batch.pictures).to(device))
            noise = torch.randn(latents.shape, generator=generator).to(device)
            timesteps = torch.randint(0, len(alphas), (len(latents),), generator=generator).to(device)
            alpha = alphas[timesteps]
            signal, noise_level = (alpha.sqrt()[:, None, None, None], (1 - alpha).sqrt()[:, None, None, None])
            noisy = (signal * latents + noise_level * noise).contiguous(memory_format=torch.channels_last)
            snr = alpha / (1 - alpha)
            # min-SNR weights for v prediction (Hang et al., 2023), kept up at high noise, where text decides most
            weights = snr.clamp(recipe.least_snr, recipe.snr_gamma) / (snr + 1)
            with torch.autocast(device.type, torch.bfloat16):
                with torch.no_grad():
                    hidden = text_encoder(torch.from_numpy(batch.ids).to(device)).last_hidden_state
                predicted = unet(noisy, timesteps, hidden).sample
            error = (predicted.float() - (signal * noise - noise_level * latents)).square()
            places = torch.from_numpy(batch.weights).to(device)
            loss = (weights * (places * error).mean((1, 2, 3)) / places.mean((1, 2, 3))).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            for group in state.optimizer.param_groups:
                group["lr"] = recipe.rate(step)
            state.optimizer.step()
            state.optimizer.zero_grad()
            decay = min(recipe.ema_decay, (step + 1) / (step + 10))
            averages = [state.average[name] for name, _ in unet.named_parameters()]
            torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1 - decay)
            yield step + 1, loss.detach()


def new_state(recipe: DenoiserRecipe, device: torch.device) -> TrainingState:
    torch.manual_seed(recipe.seed)
    unet = build_unet().to(device=device, memory_format=torch.channels_last)
    if device.type == "cpu":  # the fused attention's backward pass takes a quarter of a step on a CPU
        unet.set_attn_processor(AttnProcessor())
    optimizer = torch.optim.AdamW(
        unet.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    average = {name: value.detach().clone() for name, value in unet.named_parameters()}
    return TrainingState(unet=unet, average=average, optimizer=optimizer)


@torch.no_grad()
def draw_latents(
    unet: UNet2DConditionModel, prompt: Tensor, empty: Tensor, seeds: list[int], guidance: float = 4.0, steps: int = 25
) -> Tensor:
    """Latents for rows of text embeddings (rows, tokens, width) by DDIM with classifier-free guidance."""
    scheduler = build_scheduler()
    scheduler.set_timesteps(steps)
    shape = (CHANNELS, SIZE // PATCH, SIZE // PATCH)
    latents = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).to(
        prompt.device
    )
    text = torch.cat([empty.expand_as(prompt), prompt])
    for timestep in scheduler.timesteps:
        unconditional, conditional = unet(torch.cat([latents, latents]), timestep, text).sample.chunk(2)
        latents = scheduler.step(
            unconditional + guidance * (conditional - unconditional), timestep, latents
        ).prev_sample
    return latents
