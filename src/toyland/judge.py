"""A judge of pictures: finds each object, names its class and reads its appearance, background and style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from toyland.autoencoder import to_pixels
from toyland.judge_net import GRID, JudgeNet, fields_of, scene_logits
from toyland.render import SIZE
from toyland.world import ACCESSORIES, BACKGROUNDS, CLASSES, PATTERNS, STYLES, Appearance, Rgb

BATCH = 64
"""Pictures judged at a time."""


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
        """The likeliest class."""
        return CLASSES[int(np.argmax(self.kinds))]

    @property
    def look(self) -> Appearance:
        """The likeliest appearance."""
        return Appearance(
            body=self.body,
            second=self.second,
            third=self.third,
            pattern=PATTERNS[int(np.argmax(self.patterns))],
            accessory=ACCESSORIES[int(np.argmax(self.accessories))],
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the judge sees in one picture; `things` from left to right."""

    things: tuple[Finding, ...]
    background: str
    style: str


class Judge:
    """Reads pictures; the same picture always gets the same verdict."""

    def __init__(self, model: JudgeNet) -> None:
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path) -> Judge:
        """A judge with the weights of a file, which may hold them in half precision."""
        weights = load_file(path)
        model = JudgeNet()
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
        return cls(model)

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image], threshold: float = 0.35) -> list[Verdict]:
        """Judge pictures, brought to 64 x 64 first; `threshold` is the least confidence of a finding."""
        small = [_brought_to_size(picture) for picture in pictures]
        verdicts: list[Verdict] = []
        for start in range(0, len(small), BATCH):
            pixels = to_pixels(np.stack([np.asarray(picture) for picture in small[start : start + BATCH]]))
            grid, scene = self.model(pixels)
            verdicts += [_read(one, whole, threshold) for one, whole in zip(grid, scene, strict=True)]
        return verdicts


def _brought_to_size(picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGB")
    return picture if picture.size == (SIZE, SIZE) else picture.resize((SIZE, SIZE), Image.Resampling.BOX)


def _read(grid: Tensor, scene: Tensor, threshold: float) -> Verdict:
    """One picture's grid (fields, 16, 16) and scene logits to what they say."""
    fields = {name: value[0] for name, value in fields_of(grid[None]).items()}
    heat = fields["center"][0].sigmoid()
    peaks = heat == nn.functional.max_pool2d(heat[None, None], 3, 1, 1)[0, 0]
    found = [
        _finding({name: value[:, y, x] for name, value in fields.items()}, x, y, float(heat[y, x]))
        for y, x in torch.nonzero(peaks & (heat > threshold)).tolist()
    ]
    backgrounds, styles = scene_logits(scene)
    return Verdict(
        things=tuple(sorted(_without_doubles(found), key=lambda f: f.x)),
        background=BACKGROUNDS[int(backgrounds.argmax())],
        style=STYLES[int(styles.argmax())],
    )


def _finding(at: dict[str, Tensor], x: int, y: int, confidence: float) -> Finding:
    """The fields of one cell of the grid, each of shape (outputs,)."""
    red_green_blue = ((at["colors"].clamp(-1, 1) + 1) * 127.5).round().int().tolist()
    body, second, third = (_rgb(red_green_blue[start : start + 3]) for start in (0, 3, 6))
    return Finding(
        x=(x + 0.5 + float(at["shift"][0])) / GRID,
        y=(y + 0.5 + float(at["shift"][1])) / GRID,
        size=float(at["size"][0]) / 4,
        confidence=confidence,
        kinds=tuple(at["class"].softmax(0).tolist()),
        body=body,
        second=second,
        third=third,
        patterns=tuple(at["pattern"].softmax(0).tolist()),
        accessories=tuple(at["accessory"].softmax(0).tolist()),
    )


def _rgb(channels: list[int]) -> Rgb:
    red, green, blue = channels
    return red, green, blue


def _without_doubles(found: list[Finding]) -> list[Finding]:
    """Drop a finding whose centre lies inside a surer one."""
    kept: list[Finding] = []
    for finding in sorted(found, key=lambda f: -f.confidence):
        if all((finding.x - k.x) ** 2 + (finding.y - k.y) ** 2 > (0.6 * k.size) ** 2 for k in kept):
            kept.append(finding)
    return kept
