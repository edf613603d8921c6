"""The reader's network: names the things in latents whose places are known. Used in training only, never to evaluate.

The judge finds things in pixels, on a grid of the whole image; the reader is given latents and places, and looks at one
thing at a time, brought to one size. Another shape and other seeds than the judge's, so that a U-Net which learned to
please the reader would not please the judge by that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toyland.code import CHANNELS
from toyland.world import ACCESSORIES, CLASSES, COLORS, PATTERNS

COLOR_PARTS = ("body", "second", "third")
QUESTIONS: dict[str, tuple[str, ...]] = {
    "class": CLASSES,
    **dict.fromkeys(COLOR_PARTS, tuple(COLORS)),
    "pattern": PATTERNS,
    "accessory": ACCESSORIES,
}
"""What is asked of each thing, and the possible answers."""
ROWS, COLUMNS = 14, 12
"""Cells of the crop that shows one thing."""
REACH = (1.3, 1.75, 1.2)
"""How far the crop reaches to both sides, up and down from a thing's centre, in units of its size: accessories fit."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """For each question the logits of its answers, (things, answers), and colours (things, 3, 3) in -1..1."""

    names: dict[str, Tensor]
    colors: Tensor


def crops(latents: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """(things, channels, ROWS, COLUMNS) by bilinear sampling; `places` (things, 3) holds `x`, `y` and `size`."""
    aside, up, down = REACH
    x, y, size = places.T
    across = (torch.arange(COLUMNS, device=latents.device) + 0.5) / COLUMNS * 2 * aside - aside
    along = (torch.arange(ROWS, device=latents.device) + 0.5) / ROWS * (up + down) - up
    xs = (x[:, None] + size[:, None] * across)[:, None, :].expand(-1, ROWS, -1)
    ys = (y[:, None] + size[:, None] * along)[:, :, None].expand(-1, -1, COLUMNS)
    grid = torch.stack([xs, ys], -1) * 2 - 1
    return nn.functional.grid_sample(latents[rows], grid, padding_mode="border", align_corners=False)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ReaderNet(nn.Module):
    """Latents (images, 16, 16, 16), and the rows (things,) and places (things, 3) of the things to be named."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        wide = 2 * width
        self.features = nn.Sequential(
            nn.Conv2d(CHANNELS, width, 3, padding=1), _Block(width), _Block(width),
            nn.Conv2d(width, wide, 3, stride=2, padding=1), _Block(wide), _Block(wide),
            nn.GroupNorm(8, wide), nn.SiLU(), nn.Conv2d(wide, width, 1),
        )  # fmt: skip
        # weights of its own for each cell: where a colour lies tells body, second colour and accessory apart
        cells = (ROWS // 2) * (COLUMNS // 2)
        self.whole = nn.Sequential(nn.Flatten(), nn.Linear(width * cells, 256), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(256, len(options)) for name, options in QUESTIONS.items()})
        self.colors = nn.Linear(256, 3 * len(COLOR_PARTS))

    def forward(self, latents: Tensor, rows: Tensor, places: Tensor) -> Answers:
        hidden = self.whole(self.features(crops(latents, rows, places)))
        names = {name: head(hidden).float() for name, head in self.heads.items()}
        return Answers(names=names, colors=self.colors(hidden).float().unflatten(1, (len(COLOR_PARTS), 3)))
