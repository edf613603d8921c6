"""A judge of pictures: finds each object, names its class and reads its appearance, background and style.

A small fully convolutional network (a centre-point detector), trained on rendered scenes only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from toyland.autoencoder import to_pixels
from toyland.code import PatchCode
from toyland.render import SIZE
from toyland.world import ACCESSORIES, BACKGROUNDS, CLASSES, PATTERNS, STYLES, Appearance, Rgb, Scene

GRID = SIZE // 4
FIELDS = {
    "center": 1,
    "shift": 2,
    "size": 1,
    "class": len(CLASSES),
    "colors": 9,
    "pattern": len(PATTERNS),
    "accessory": len(ACCESSORIES),
}
"""Outputs per cell of the grid, in this order; `shift` in cells, `size` as in `Thing`, `colors` in -1..1."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One object as the judge sees it; probabilities keep what it is unsure of."""

    x: float
    y: float
    size: float
    confidence: float
    kinds: tuple[float, ...]
    body: Rgb
    second: Rgb
    third: Rgb
    patterns: tuple[float, ...]
    accessories: tuple[float, ...]

    @property
    def kind(self) -> str:
        return CLASSES[int(np.argmax(self.kinds))]

    @property
    def look(self) -> Appearance:
        return Appearance(
            body=self.body, second=self.second, third=self.third,
            pattern=PATTERNS[int(np.argmax(self.patterns))], accessory=ACCESSORIES[int(np.argmax(self.accessories))],
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the judge sees in one picture; `things` from left to right."""

    things: tuple[Finding, ...]
    background: str
    style: str


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def _down(wide: int, narrow: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(wide, narrow, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU())


class JudgeNet(nn.Module):
    """Pixels (rows, 3, 64, 64) in -1..1 to a grid (rows, 32, 16, 16) and to scene logits (rows, backgrounds + styles)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            _down(24, 48),
            _Residual(48),
            _Residual(48),
        )
        self.middle = nn.Sequential(_down(48, 96), _Residual(96), _Residual(96))
        self.context = nn.Sequential(_down(96, 128), _Residual(128), _Residual(128))
        self.join = nn.Sequential(nn.Conv2d(224, 112, 1, bias=False), nn.BatchNorm2d(112), nn.ReLU(), _Residual(112))
        self.grid = nn.Conv2d(112, sum(FIELDS.values()), 1)
        self.scene = nn.Linear(128, len(BACKGROUNDS) + len(STYLES))
        nn.init.constant_(self.grid.bias[:1], -3.0)  # nearly all cells hold no centre

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.middle(self.stem(pixels))
        coarse = self.context(fine)
        joined = torch.cat([fine, nn.functional.interpolate(coarse, scale_factor=2.0)], 1)
        return self.grid(self.join(joined)), self.scene(coarse.mean((2, 3)))


def _fields(grid: Tensor) -> dict[str, Tensor]:
    return dict(zip(FIELDS, grid.split(list(FIELDS.values()), dim=1), strict=True))


@dataclass(frozen=True, kw_only=True)
class JudgeRecipe:
    steps: int = 4500
    batch_size: int = 24
    learning_rate: float = 2e-3
    seed: int = 13


def _truth(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Targets per positive cell: the cells within 1.2 of an object's centre learn all that is true of it."""
    heat = np.zeros((len(scenes), GRID, GRID), np.float32)
    cells: list[tuple[int, int, int]] = []
    values: list[list[float]] = []
    names: list[tuple[int, int, int, bool, bool]] = []
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            cx, cy = thing.x * GRID - 0.5, thing.y * GRID - 0.5
            ys, xs = np.mgrid[0:GRID, 0:GRID]
            distance = (xs - cx) ** 2 + (ys - cy) ** 2
            heat[row] = np.maximum(heat[row], np.exp(-distance / 1.2))
            nearest = np.unravel_index(distance.argmin(), distance.shape)
            heat[row][nearest] = 1.0
            look = thing.look
            colors = [channel / 127.5 - 1 for color in (look.body, look.second, look.third) for channel in color]
            for y, x in np.argwhere(distance < 1.44):
                cells.append((row, int(y), int(x)))
                values.append([cx - x, cy - y, thing.size * 4, *colors])
                readable = scene.style in ("none", "scanline")
                names.append(
                    (
                        CLASSES.index(thing.kind),
                        PATTERNS.index(look.pattern),
                        ACCESSORIES.index(look.accessory),
                        look.accessory != "none",
                        readable,
                    )
                )
    return {
        "heat": torch.from_numpy(heat), "cells": torch.tensor(cells), "values": torch.tensor(values), "names": torch.tensor(names),
        "scene": torch.tensor([(BACKGROUNDS.index(s.background), STYLES.index(s.style)) for s in scenes]),
    }  # fmt: skip


def _loss(grid: Tensor, scene: Tensor, truth: dict[str, Tensor]) -> Tensor:
    fields = _fields(grid)
    heat, logit = truth["heat"], fields["center"][:, 0]
    p = logit.sigmoid().clamp(1e-5, 1 - 1e-5)
    exact = heat >= 1  # focal loss of centre-point detectors (Zhou et al., 2019)
    focal = torch.where(exact, -((1 - p) ** 2) * p.log(), -((1 - heat) ** 4) * p**2 * (1 - p).log()).sum() / exact.sum()
    row, y, x = truth["cells"].T
    at = {name: value[row, :, y, x] for name, value in fields.items()}
    names, readable = truth["names"], truth["names"][:, 4].float()
    geometry = (torch.cat([at["shift"], at["size"]], 1) - truth["values"][:, :3]).abs().mean()
    visible = torch.stack([readable, readable, readable * names[:, 3]], 1).repeat_interleave(3, 1)
    color = ((at["colors"] - truth["values"][:, 3:]).abs() * visible).sum() / visible.sum().clamp(min=1)
    cross = nn.functional.cross_entropy
    naming = cross(at["class"], names[:, 0]) + cross(at["pattern"], names[:, 1]) + cross(at["accessory"], names[:, 2])
    backgrounds, styles = scene.split([len(BACKGROUNDS), len(STYLES)], 1)
    whole = cross(backgrounds, truth["scene"][:, 0]) + cross(styles, truth["scene"][:, 1])
    return focal + geometry + 3 * color + naming + 0.5 * whole


def _worn(pixels: Tensor, code: PatchCode, rng: np.random.Generator) -> Tensor:
    """Pictures as a diffusion model might leave them: some through the patch code, some with errors in their latents."""
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
    model.train().to(device=device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, recipe.steps, pct_start=0.1)
    rng = np.random.default_rng(recipe.seed)
    for step in range(recipe.steps):
        chosen = np.sort(rng.choice(len(pictures), recipe.batch_size, replace=False))
        pixels = _worn(to_pixels(pictures[chosen]), code, rng).to(device, memory_format=torch.channels_last)
        truth = {name: value.to(device) for name, value in _truth([scenes[int(index)] for index in chosen]).items()}
        with torch.autocast(device.type, torch.bfloat16):
            grid, scene = model(pixels)
        loss = _loss(grid.float(), scene.float(), truth)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        yield step + 1, loss.detach()


class Judge:
    """Reads pictures; the same picture always gets the same verdict."""

    def __init__(self, model: JudgeNet) -> None:
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path) -> Judge:
        model = JudgeNet()
        model.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()}
        )
        return cls(model)

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image], threshold: float = 0.35) -> list[Verdict]:
        """Judge RGB pictures of any size (they are brought to 64 x 64); `threshold` is the least confidence of a finding."""
        small = [
            p.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX) if p.size != (SIZE, SIZE) else p.convert("RGB")
            for p in pictures
        ]
        verdicts: list[Verdict] = []
        for start in range(0, len(small), 64):
            pixels = to_pixels(np.stack([np.asarray(p) for p in small[start : start + 64]]))
            grid, scene = self.model(pixels)
            verdicts += [_read(one, whole, threshold) for one, whole in zip(grid, scene, strict=True)]
        return verdicts


def _read(grid: Tensor, scene: Tensor, threshold: float) -> Verdict:
    fields = {name: value[0] for name, value in _fields(grid[None]).items()}
    heat = fields["center"][0].sigmoid()
    peaks = heat == nn.functional.max_pool2d(heat[None, None], 3, 1, 1)[0, 0]
    found: list[Finding] = []
    for y, x in torch.nonzero(peaks & (heat > threshold)).tolist():
        at = {name: value[:, y, x] for name, value in fields.items()}
        rgb = ((at["colors"].clamp(-1, 1) + 1) * 127.5).round().int().tolist()
        found.append(
            Finding(
                x=(x + 0.5 + float(at["shift"][0])) / GRID, y=(y + 0.5 + float(at["shift"][1])) / GRID,
                size=float(at["size"][0]) / 4, confidence=float(heat[y, x]), kinds=tuple(at["class"].softmax(0).tolist()),
                body=tuple(rgb[:3]), second=tuple(rgb[3:6]), third=tuple(rgb[6:]),
                patterns=tuple(at["pattern"].softmax(0).tolist()), accessories=tuple(at["accessory"].softmax(0).tolist()),
            )
        )  # fmt: skip
    backgrounds, styles = scene.split([len(BACKGROUNDS), len(STYLES)])
    return Verdict(
        things=tuple(sorted(_without_doubles(found), key=lambda f: f.x)),
        background=BACKGROUNDS[int(backgrounds.argmax())],
        style=STYLES[int(styles.argmax())],
    )


def _without_doubles(found: list[Finding]) -> list[Finding]:
    """Drop a finding whose centre lies inside a surer one."""
    kept: list[Finding] = []
    for finding in sorted(found, key=lambda f: -f.confidence):
        if all((finding.x - k.x) ** 2 + (finding.y - k.y) ** 2 > (0.6 * k.size) ** 2 for k in kept):
            kept.append(finding)
    return kept
