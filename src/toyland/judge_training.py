"""How the judge learns: from rendered scenes only, some of them worn as a diffusion model might leave them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from toyland.autoencoder import to_pixels
from toyland.code import PatchCode
from toyland.judge_net import GRID, JudgeNet, fields_of, scene_logits
from toyland.precision import half_where_fast
from toyland.world import ACCESSORIES, BACKGROUNDS, CLASSES, PATTERNS, STYLES, Scene, Thing


@dataclass(frozen=True, kw_only=True)
class JudgeRecipe:
    """Everything that the judge's training depends on, besides the scenes."""

    steps: int = 4500
    batch_size: int = 24
    learning_rate: float = 2e-3
    seed: int = 13


READABLE_STYLES = ("none", "scanline")
"""Styles that leave the colours to be read."""


def _answers(thing: Thing, style: str) -> tuple[int, int, int, bool, bool]:
    """Class, pattern and accessory as numbers; whether there is an accessory; whether colours can be read."""
    look = thing.look
    return (
        CLASSES.index(thing.kind),
        PATTERNS.index(look.pattern),
        ACCESSORIES.index(look.accessory),
        look.accessory != "none",
        style in READABLE_STYLES,
    )


def _truth(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Targets per positive cell: the cells within 1.2 of an object's centre learn all that is true of it."""
    heat = np.zeros((len(scenes), GRID, GRID), np.float32)
    cells: list[tuple[int, int, int]] = []
    values: list[list[float]] = []
    names: list[tuple[int, int, int, bool, bool]] = []
    ys, xs = np.mgrid[0:GRID, 0:GRID]
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            cx, cy = thing.x * GRID - 0.5, thing.y * GRID - 0.5
            distance = (xs - cx) ** 2 + (ys - cy) ** 2
            heat[row] = np.maximum(heat[row], np.exp(-distance / 1.2))
            heat[row][np.unravel_index(distance.argmin(), distance.shape)] = 1.0
            look = thing.look
            colors = [channel / 127.5 - 1 for color in (look.body, look.second, look.third) for channel in color]
            for y, x in np.argwhere(distance < 1.44):
                cells.append((row, int(y), int(x)))
                values.append([cx - x, cy - y, thing.size * 4, *colors])
                names.append(_answers(thing, scene.style))
    return {
        "heat": torch.from_numpy(heat),
        "cells": torch.tensor(cells),
        "values": torch.tensor(values),
        "names": torch.tensor(names),
        "scene": torch.tensor([(BACKGROUNDS.index(s.background), STYLES.index(s.style)) for s in scenes]),
    }


def _center_loss(logit: Tensor, heat: Tensor) -> Tensor:
    """Focal loss of centre-point detectors (Zhou et al., "Objects as Points", 2019), per object."""
    p = logit.sigmoid().clamp(1e-5, 1 - 1e-5)
    exact = heat >= 1
    return torch.where(exact, -((1 - p) ** 2) * p.log(), -((1 - heat) ** 4) * p**2 * (1 - p).log()).sum() / exact.sum()


def _loss(grid: Tensor, scene: Tensor, truth: dict[str, Tensor]) -> Tensor:
    fields = fields_of(grid)
    focal = _center_loss(fields["center"][:, 0], truth["heat"])
    row, y, x = truth["cells"].T
    at = {name: value[row, :, y, x] for name, value in fields.items()}
    names, readable = truth["names"], truth["names"][:, 4].float()
    geometry = (torch.cat([at["shift"], at["size"]], 1) - truth["values"][:, :3]).abs().mean()
    visible = torch.stack([readable, readable, readable * names[:, 3]], 1).repeat_interleave(3, 1)
    color = ((at["colors"] - truth["values"][:, 3:]).abs() * visible).sum() / visible.sum().clamp(min=1)
    cross = nn.functional.cross_entropy
    naming = cross(at["class"], names[:, 0]) + cross(at["pattern"], names[:, 1]) + cross(at["accessory"], names[:, 2])
    backgrounds, styles = scene_logits(scene)
    whole = cross(backgrounds, truth["scene"][:, 0]) + cross(styles, truth["scene"][:, 1])
    return focal + geometry + 10 * color + naming + 0.5 * whole


def _worn(pixels: Tensor, code: PatchCode, rng: np.random.Generator) -> Tensor:
    """Pictures as a diffusion model might leave them: four in ten through the patch code with errors in the latents."""
    latents = code.encode(pixels)
    noise = torch.from_numpy(rng.normal(size=latents.shape).astype(np.float32))
    level = torch.from_numpy(rng.uniform(0, 0.15, (len(pixels), 1, 1, 1)).astype(np.float32))
    worn = code.decode(latents + level * noise).clamp(-1, 1)
    return torch.where(torch.from_numpy(rng.random((len(pixels), 1, 1, 1)) < 0.4), worn, pixels)


def train_judge(
    pictures: np.ndarray,
    scenes: Sequence[Scene],
    code: PatchCode,
    recipe: JudgeRecipe,
    model: JudgeNet,
    device: torch.device,
) -> Iterator[tuple[int, Tensor]]:
    """Train in place; yields (step, loss)."""
    cast(Any, model.train()).to(device=device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, recipe.steps, pct_start=0.1)
    rng = np.random.default_rng(recipe.seed)
    for step in range(recipe.steps):
        chosen = np.sort(rng.choice(len(pictures), recipe.batch_size, replace=False))
        pixels = _worn(to_pixels(pictures[chosen]), code, rng).to(device, memory_format=torch.channels_last)
        truth = {name: value.to(device) for name, value in _truth([scenes[int(index)] for index in chosen]).items()}
        with half_where_fast(device):
            grid, scene = model(pixels)
        loss = _loss(grid.float(), scene.float(), truth)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        yield step + 1, loss.detach()
