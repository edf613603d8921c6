"""What a caption asks of an image, thing by thing, and the error of a reader's answers as a term of the training loss.

A squared error on latents hardly notices a hat in the wrong colour. A reader (`reader_net`) that names class, colours,
pattern and accessory of each thing in the U-Net's estimate of the clean latents does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from toyland.captions import FEATURES, Caption
from toyland.labels import IGNORE
from toyland.reader_net import COLOR_PARTS, QUESTIONS, Answers
from toyland.world import Scene, Thing

LABELS = np.dtype(
    [
        ("row", np.int64),
        ("place", np.float32, 3),
        ("names", np.int64, len(QUESTIONS)),
        ("colors", np.float32, (len(COLOR_PARTS), 3)),
    ]
)
"""One thing of a batch: its row, its `x`, `y` and `size`, the index of each right answer (`IGNORE` where nothing is
asked), and its colours in -1..1. NumPy because batches are prepared without torch, see `denoiser.Example`."""
POSITION_WEIGHT = 2.0
"""Weight of a colour's squared distance in -1..1 beside the cross-entropy of its name."""


def thing_labels(scenes: Sequence[Scene], captions: Sequence[Caption | None] | None = None) -> np.ndarray:
    """An array of `LABELS`, one entry per thing: everything about it, or only what the captions name.

    A caption of None, one that was dropped, asks nothing.
    """
    entries: list[tuple[int, tuple[float, ...], list[int], np.ndarray]] = []
    for row, scene in enumerate(scenes):
        said = None if captions is None else captions[row]
        named = {mention.thing: mention.named for mention in said.mentions} if said else {}
        for index, thing in enumerate(scene.things):
            asked = frozenset(FEATURES) if captions is None else named.get(index)
            look = thing.look
            colors = np.array([look.body, look.second, look.third], np.float32) / 127.5 - 1
            entries.append((row, (thing.x, thing.y, thing.size), _answers(thing, scene.style, asked), colors))
    return np.array(entries, LABELS)


def _answers(thing: Thing, style: str, named: frozenset[str] | None) -> list[int]:
    """The index of the right answer to each of `QUESTIONS`; None asks nothing, an empty set the class alone."""
    look = thing.look
    values = dict(zip(COLOR_PARTS, look.color_names(), strict=True))
    values |= {"class": thing.kind, "pattern": look.pattern, "accessory": look.accessory}
    asked = set() if named is None else {"class", *named}
    unsaid = {"third"} if look.accessory == "none" else set()
    if style != "none":
        unsaid |= set(COLOR_PARTS)
    if named != frozenset(FEATURES):  # only a full description says by its silence that there is none
        unsaid |= {"pattern"} if look.pattern == "plain" and "second" not in asked else set()
        unsaid |= {"accessory"} if look.accessory == "none" else set()
    return [options.index(values[name]) if name in asked - unsaid else IGNORE for name, options in QUESTIONS.items()]


@dataclass(frozen=True, kw_only=True)
class ThingLabels:
    """`LABELS` as tensors, each with the things as its first dimension."""

    rows: Tensor
    places: Tensor
    names: Tensor
    colors: Tensor

    @classmethod
    def of(cls, labels: np.ndarray, device: torch.device) -> ThingLabels:
        """From an array of `LABELS`."""
        rows, places, names, colors = (
            torch.from_numpy(np.ascontiguousarray(labels[name])).to(device) for name in LABELS.names or ()
        )
        return cls(rows=rows, places=places, names=names, colors=colors)


def reading_loss(answers: Answers, labels: ThingLabels, weights: Tensor | None = None) -> Tensor:
    """Sum over questions of the mean error over the things that are asked; `weights` (things,) scales each error.

    The error of a colour is the cross-entropy of its name and the squared distance of its position.
    """
    total = answers.colors.new_zeros(())
    for index, (name, logits) in enumerate(answers.names.items()):
        truth = labels.names[:, index]
        asked = truth != IGNORE
        error = torch.nn.functional.cross_entropy(logits, truth, ignore_index=IGNORE, reduction="none")
        if name in COLOR_PARTS:
            part = COLOR_PARTS.index(name)
            distance = (answers.colors[:, part] - labels.colors[:, part]).square().sum(1)
            error = error + POSITION_WEIGHT * distance
        error = torch.where(asked, error, 0.0)
        total = total + (error if weights is None else weights * error).sum() / asked.sum().clamp(min=1)
    return total


def noise_weights(snr: Tensor, full_snr: float, most_snr: float) -> Tensor:
    """How much the reading of an estimate counts, by the signal-to-noise ratio of what it was made from.

    In full from `full_snr` on, less in proportion below; not at all above `most_snr`, where the latents show it anyway.
    """
    return (snr / full_snr).clamp(max=1.0) * (snr < most_snr)


def clean_estimate(noisy: Tensor, velocity: Tensor, alpha: Tensor) -> Tensor:
    """The clean latents that a predicted velocity implies; `alpha` (rows,) is the schedule's cumulative product."""
    signal, noise = alpha.sqrt()[:, None, None, None], (1 - alpha).sqrt()[:, None, None, None]
    return signal * noisy - noise * velocity
