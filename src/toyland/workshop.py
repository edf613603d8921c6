"""The work folder of one training: where each stage's results lie and how they are read back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from toyland.code import PatchCode
from toyland.curve import draw_curve
from toyland.processes import is_first
from toyland.scenes import rendered

FITTED_ON = 4000
"""Pictures that the patch code is fitted on."""


class Workshop:
    """A work folder, the recipe that is followed in it, and the device that does the work."""

    def __init__(self, folder: Path, recipe: dict[str, Any], device: torch.device) -> None:
        self.folder, self.recipe, self.device = folder, recipe, device
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def scene_seed(self) -> int:
        """Which series of scenes the base learns from."""
        return int(self.recipe["scenes"]["seed"])

    def pictures(self) -> np.ndarray:
        """The scenes, drawn if they are not yet there."""
        return rendered(self.folder, self.scene_seed, int(self.recipe["scenes"]["count"]))

    def code(self) -> PatchCode:
        """The patch code, fitted on the first scenes."""
        path = self.folder / "code.safetensors"
        if not path.exists():
            save_file(PatchCode.fit(self.pictures()[:FITTED_ON]).tensors(), path)
        return PatchCode(**load_file(path))

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
