"""How other implementations apply adapters to a U-Net and train them: small baselines, for the benchmarks only."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from tara.adapters.adapter import Adapter
from tara.families.base import Base
from tara.storage.images import read_image

TEXT_PROJECTIONS = ("attn2.to_k", "attn2.to_v")


def twin(pipe: Any) -> Any:
    """A pipeline with modules of its own that share another one's weights; hooks on it do not affect the other."""
    shared = {id(tensor): tensor for tensor in (*pipe.unet.parameters(), *pipe.unet.buffers())}
    copy: Any = type(pipe)(**{**pipe.components, "unet": deepcopy(pipe.unet, shared)})
    copy.set_progress_bar_config(disable=True)
    return copy


@dataclass(frozen=True, eq=False)
class PublishedAdapter:
    """An adapter as the published code applies it: the product of both matrices, per layer, multiplied at each step."""

    dense: Mapping[str, Tensor]
    tokens: tuple[int, ...]

    @classmethod
    def of(cls, adapter: Adapter, tokens: Sequence[int], device: Any, dtype: torch.dtype) -> PublishedAdapter:
        """Multiply the matrices out."""
        return cls(
            {path: low_rank.dense().to(device, dtype) for path, low_rank in adapter.layers.items()}, tuple(tokens)
        )

    @property
    def size(self) -> int:
        """Bytes of all layers."""
        return sum(matrix.nbytes for matrix in self.dense.values())


@contextmanager
def published(unet: Any, adapters: Sequence[PublishedAdapter]) -> Generator[None]:
    """The adapters beside each of their layers, for a ``with`` block; keys and values only at their own tokens."""
    layers = {path for adapter in adapters for path in adapter.dense}
    hooks = [unet.get_submodule(path).register_forward_hook(_beside(path, adapters)) for path in sorted(layers)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _beside(path: str, adapters: Sequence[PublishedAdapter]) -> Any:
    acting = [(adapter.dense[path], list(adapter.tokens)) for adapter in adapters if path in adapter.dense]
    masked = path.endswith(TEXT_PROJECTIONS)

    def add(_layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for matrix, tokens in acting:
            delta = inputs[0] @ matrix.T
            if masked:
                mask = delta.new_zeros(delta.shape[1], 1)
                mask[tokens] = 1
                delta = delta * mask
            output = output + delta
        return output

    return add


def load_into_diffusers(pipe: Any, adapters: Sequence[Adapter], folder: Path) -> list[str]:
    """Load adapters with diffusers' own ``load_lora_weights``; their names there."""
    names: list[str] = []
    for adapter in adapters:
        file = adapter.save(folder / adapter.name)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # of the previous adapter, on purpose
            pipe.load_lora_weights(str(file), adapter_name=file.stem)
        names.append(file.stem)
    return names


def usual_step(pipe: Any, photo: Path, phrase: str, side: int, rank: int) -> Callable[[], Any]:
    """A step of the usual training script: image and caption are encoded every time, and LoRA is on q, k, v and out."""
    base = Base(pipe)
    pipe.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    trainable = [parameter for parameter in pipe.unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4)
    image = read_image(photo).resize((side, side))
    pixels = pipe.image_processor.preprocess(image).to(base.dtype)

    def step() -> None:
        mean, deviation = base.encode_images(pixels)
        latents, noise = mean + deviation * torch.randn_like(mean), torch.randn_like(mean)
        timesteps = torch.randint(0, 1000, (1,))
        noisy = pipe.scheduler.add_noise(latents, noise, timesteps)
        predicted = base.predict(noisy, timesteps, base.encode([phrase]))
        torch.nn.functional.mse_loss(predicted.float(), noise.float()).backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step
