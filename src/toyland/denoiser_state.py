"""The settings of the U-Net's training, and what a checkpoint of it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from toyland.unet import build_unet


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
    reading_weight: float = 0.0
    """Weight of the reader's error on what captions name (`reading`), beside the squared error; 0 needs no reader."""
    reading_full_snr: float = 0.25
    """Least signal-to-noise ratio at which the reader's error counts in full; below it counts in proportion."""
    reading_most_snr: float = 19.0
    """Signal-to-noise ratio from which on the reader is not asked: the noisy latents show the answers."""
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
        tensors, step = load_file(path), steps_done(path)
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


def steps_done(path: Path) -> int:
    """The number of steps after which a checkpoint was written."""
    with safe_open(path, "np") as file:
        return int(file.metadata()["step"])


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A moment in its parameter's memory layout: the fused optimizer walks both in the order of memory, unchecked."""
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


def average_in(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """The moving average of the U-Net's weights, from the tensors of a checkpoint."""
    prefix = "average."
    return {name.removeprefix(prefix): value for name, value in checkpoint.items() if name.startswith(prefix)}


def unet_of(weights: dict[str, Tensor], device: torch.device) -> UNet2DConditionModel:
    """A U-Net with these weights, to generate with."""
    unet = build_unet()
    unet.load_state_dict(weights)
    cast(Any, unet.eval().requires_grad_(False)).to(device=device, memory_format=torch.channels_last)
    return unet
