"""Sample sheets: what the base draws, to be looked at while it learns."""

from __future__ import annotations

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from toyland.captions import bare_caption, full_caption
from toyland.code import PatchCode
from toyland.render import SIZE
from toyland.unet import draw_latents
from toyland.world import BACKGROUNDS, place, random_subject

COLUMNS = 8


def sheet_prompts(count: int = 24) -> list[str]:
    """Prompts of the sample sheets: one or two things, bare and fully described by turns."""
    rng = np.random.default_rng(99)
    prompts: list[str] = []
    for index in range(count):
        subjects = [random_subject(rng) for _ in range(1 + (index % 3 > 0))]
        scene = place(rng, subjects, background=BACKGROUNDS[index % len(BACKGROUNDS)])
        kinds = [thing.kind for thing in scene.things]
        prompts.append(
            full_caption(scene.things, scene.background) if index % 2 else bare_caption(kinds, scene.background)
        )
    return prompts


def sample_sheet(
    unet: UNet2DConditionModel, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, code: PatchCode
) -> Image.Image:
    """One picture for each of the prompts, by the patch code's own inverse, at twice the size."""
    prompts = sheet_prompts()
    ids = tokenizer([*prompts, ""], padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    device = unet.device
    with torch.no_grad():
        hidden = encoder(ids.to(device)).last_hidden_state
    latents = draw_latents(unet.eval(), hidden[:-1], hidden[-1:], range(len(prompts)))
    return _contact_sheet(code.decode(latents.cpu()))


def _contact_sheet(pixels: Tensor) -> Image.Image:
    """Pixels (rows, 3, height, width) in -1..1, side by side."""
    pictures = ((pixels.clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
    sheet = Image.new("RGB", (COLUMNS * SIZE, -(-len(pictures) // COLUMNS) * SIZE))
    for index, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture), (index % COLUMNS * SIZE, index // COLUMNS * SIZE))
    return sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST)
