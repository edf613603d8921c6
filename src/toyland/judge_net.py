"""The judge's network: a small fully convolutional centre-point detector."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from toyland.render import SIZE
from toyland.world import ACCESSORIES, BACKGROUNDS, CLASSES, PATTERNS, STYLES

GRID = SIZE // 4
"""Cells along each side of the grid."""
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
    """Pixels (rows, 3, 64, 64) in -1..1 to a grid (rows, 32, 16, 16) and scene logits (rows, backgrounds + styles)."""

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
        nn.init.constant_(cast(Tensor, self.grid.bias)[:1], -3.0)  # nearly all cells hold no centre

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.middle(self.stem(pixels))
        coarse = self.context(fine)
        joined = torch.cat([fine, nn.functional.interpolate(coarse, scale_factor=2.0)], 1)
        return self.grid(self.join(joined)), self.scene(coarse.mean((2, 3)))


def fields_of(grid: Tensor) -> dict[str, Tensor]:
    """The grid (rows, fields, height, width) taken apart by `FIELDS`."""
    return dict(zip(FIELDS, grid.split(list(FIELDS.values()), dim=1), strict=True))


def scene_logits(scene: Tensor) -> tuple[Tensor, Tensor]:
    """The last dimension taken apart: logits of the background and of the style."""
    backgrounds, styles = scene.split([len(BACKGROUNDS), len(STYLES)], dim=-1)
    return backgrounds, styles
