"""The published commands' training, against the published formulas written out on stock diffusers in float64."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from published_commands import TRAIN_SD, TRAIN_SDXL, typed
from tara.cli.published import SD_TRAINING, SDXL_TRAINING, Script, recipe_of
from tara.core.lora import LowRank
from tara.families.base import Base
from training_fixtures import factors, run_steps, training_of

STEPS, SIDE, PROMPT = 3, 32, "a photo of xlo dog"  # xlo is two tokens, x and lo
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


class PublishedTraining:
    """One step of the published scripts: LoRA layers on every attention projection, MSE plus alignment, AdamW."""

    def __init__(self, pipe: Any, first: Mapping[str, LowRank], scale: float, rate: float, weight_decay: float) -> None:
        self.pipe, self.scale, self.unet = pipe, scale, copy.deepcopy(pipe.unet).requires_grad_(False)
        self.down = {path: nn.Parameter(low.a.double()) for path, low in first.items()}
        self.up = {path: nn.Parameter(low.b.double()) for path, low in first.items()}
        self.parameters = [*self.down.values(), *self.up.values()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=weight_decay)
        ids = pipe.tokenizer(PROMPT, padding="max_length", max_length=77).input_ids
        self.rare = torch.tensor([pipe.tokenizer.convert_ids_to_tokens(i) in ("x", "lo</w>") for i in ids])
        self.of_class = torch.tensor([pipe.tokenizer.convert_ids_to_tokens(i) == "dog</w>" for i in ids])
        assert (int(self.rare.sum()), int(self.of_class.sum())) == (2, 1)
        self.distances: list[Tensor] = []
        for path in self.down:
            self.unet.get_submodule(path).register_forward_hook(self._hook(path))

    def _hook(self, path: str) -> Any:
        masked = path.endswith(("attn2.to_k", "attn2.to_v"))

        def add_delta(_: nn.Module, inputs: tuple[Tensor], out: Tensor) -> Tensor:
            delta = self.scale * (inputs[0] @ self.down[path].T @ self.up[path].T)
            changed = out + (delta * self.rare[None, :, None] if masked else delta)
            if path.endswith("attn2.to_k"):  # every piece of the rare word against the frozen key of the class word
                self.distances.append((changed[0, self.rare] - out[0, self.of_class]).abs().mean())
            return changed

        return add_delta

    def step(self, noisy: Tensor, timesteps: Tensor, target: Tensor) -> tuple[float, float, float]:
        """The denoising loss, the alignment loss and the gradient's norm, before the update."""
        with torch.no_grad():
            embeddings, _, *pooled = self.pipe.encode_prompt(
                PROMPT, device=torch.device("cpu"), num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        added: dict[str, Tensor] = {}
        if pooled:
            sizes = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]]).double()
            added = {"text_embeds": pooled[0], "time_ids": sizes}
        self.distances.clear()
        predicted = self.unet(noisy, timesteps, embeddings, added_cond_kwargs=added).sample
        denoising, alignment = nn.functional.mse_loss(predicted, target), torch.stack(self.distances).mean()
        self.optimizer.zero_grad()
        (denoising + alignment).backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return denoising.item(), alignment.item(), norm.item()


@pytest.mark.parametrize(
    ("shape", "script", "command", "scale", "weight_decay"),
    [("float64_base", SD_TRAINING, TRAIN_SD, 4.0, 1e-2), ("float64_sdxl", SDXL_TRAINING, TRAIN_SDXL, 1.0, 1e-4)],
)
def test_a_published_command_trains_as_the_published_formulas(
    shape: str, script: Script, command: str, scale: float, weight_decay: float, tmp_path: Path, request: Any
) -> None:
    base: Base = request.getfixturevalue(shape)
    for number in range(2):  # not square: the published code conditions on the resolution all the same
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    replaced = {"path/to/your/images": tmp_path, "<rare_token>": "xlo", "<class_word>": "dog"}
    recipe = recipe_of(script.parse(typed(command, replaced)))
    changes = {"steps": STEPS, "precision": "auto", "optimizer": "adamw"}  # fp16 and 8 bits are for CUDA
    settings = recipe.settings.model_copy(update=changes)
    training = training_of(recipe.concepts, settings, base)
    (before,) = training.adapters()
    layers = [name for name, _ in base.denoiser.named_modules() if "attn" in name and name.endswith(PROJECTIONS)]
    assert set(before.layers) == set(layers)
    rate = settings.peak_learning_rate
    published = PublishedTraining(base.pipe, before.layers, scale, rate, weight_decay)

    batches = [training.images(call).groups[0] for call in range(STEPS)]
    for record, batch in zip(run_steps(training), batches, strict=True):
        (part,) = record.concepts
        denoising, alignment, norm = published.step(batch.noisy, batch.timesteps, batch.target)
        assert part.denoising == pytest.approx(denoising, rel=1e-9)
        assert part.alignment == pytest.approx(alignment, rel=1e-9)
        assert part.grad_norm == pytest.approx(norm, rel=1e-9)
    first, last = factors(before), factors(training.adapters()[0])
    for path in before.layers:
        for name, theirs in ((f"{path}.a", published.down[path]), (f"{path}.b", published.up[path])):
            moved = theirs.detach() - first[name]
            assert float((last[name] - theirs.detach()).abs().max()) < 1e-6 * float(moved.abs().max()) + 1e-12, name
