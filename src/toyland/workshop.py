"""The work folder of one training: where each stage's results lie and how they are read back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from toyland.code import PatchCode
from toyland.curve import draw_curve
from toyland.denoiser_state import average_in, unet_of
from toyland.processes import is_first
from toyland.reader_net import ReaderNet
from toyland.scenes import rendered, scene_number
from toyland.world import Scene, SceneDistribution

FITTED_ON = 4000
"""Pictures that the patch code is fitted on."""


class Workshop:
    """A work folder, the recipe that is followed in it, and the device that does the work."""

    def __init__(self, folder: Path, recipe: dict[str, Any], device: torch.device, compiled: bool = False) -> None:
        self.folder, self.recipe, self.device, self.compiled = folder, recipe, device, compiled
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def scene_seed(self) -> int:
        """Which series of scenes the base learns from."""
        return int(self.recipe["scenes"]["seed"])

    @property
    def distribution(self) -> SceneDistribution:
        """What those scenes hold; the default unless the recipe says otherwise."""
        scenes = self.recipe["scenes"]
        return SceneDistribution(**{name: scenes[name] for name in ("counts", "small_share") if name in scenes})

    def pictures(self) -> np.ndarray:
        """The scenes, rendered if they are not yet there."""
        return rendered(self.folder, self.scene_seed, int(self.recipe["scenes"]["count"]), self.distribution)

    def code(self) -> PatchCode:
        """The patch code: fitted on the first scenes, or on those of the series that the recipe's table `code` names.

        A training that keeps a shipped autoencoder needs the code which that autoencoder was taught.
        """
        path = self.folder / "code.safetensors"
        if not path.exists():
            series = self.recipe.get("code")
            images = rendered(self.folder, series["seed"], FITTED_ON) if series else self.pictures()[:FITTED_ON]
            save_file(PatchCode.fit(images).tensors(), path)
        return PatchCode(**load_file(path))

    def scene(self, index: int) -> Scene:
        """What image `index` of `pictures` shows."""
        return scene_number(self.scene_seed, index, self.distribution)

    @property
    def checkpoint(self) -> Path:
        """What the denoiser stage writes and resumes from."""
        return self.folder / "denoiser.safetensors"

    def average_unet(self) -> UNet2DConditionModel:
        """The moving average of the U-Net's weights in the checkpoint."""
        return unet_of(average_in(load_file(self.checkpoint)), self.device)

    def autoencoder(self) -> AutoencoderKL:
        """What the autoencoder stage left, frozen."""
        model = AutoencoderKL.from_pretrained(self.folder / "vae").eval().requires_grad_(False)
        nn.Module.to(model, self.device)
        return model

    def reader(self) -> ReaderNet:
        """What the reader stage left, frozen."""
        model = ReaderNet()
        model.load_state_dict(load_file(self.folder / "reader.safetensors"))
        return model.eval().requires_grad_(False).to(device=self.device)

    def tokenizer(self) -> CLIPTokenizer:
        """What the text stage left."""
        return CLIPTokenizer.from_pretrained(self.folder / "tokenizer")

    def text_encoder(self) -> CLIPTextModel:
        """What the text stage left, frozen."""
        encoder = CLIPTextModel.from_pretrained(self.folder / "text_encoder").eval().requires_grad_(False)
        nn.Module.to(encoder, self.device)
        return encoder

    def follow(self, stage: str, steps: Iterable[tuple[int, Tensor]], total: int) -> Iterator[int]:
        """Print and keep the mean loss of every 100 steps while they run; their curve is drawn at the end."""
        losses: list[Tensor] = []
        began = time.monotonic()
        with (self.folder / f"{stage}.jsonl").open("a", encoding="utf-8") as log:
            for step, loss in steps:
                losses.append(loss)
                if is_first() and (step % 100 == 0 or step == total):
                    mean = float(torch.stack(losses).mean())
                    losses.clear()
                    log.write(json.dumps({"step": step, "loss": round(mean, 5)}) + "\n")
                    log.flush()
                    print(f"{stage} {step}/{total} loss {mean:.4f} {time.monotonic() - began:.0f} s", flush=True)
                yield step
        if is_first():
            draw_curve(self.folder / f"{stage}.jsonl")
