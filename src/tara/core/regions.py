"""Computes regions from the attention maps of words: which cell of an image belongs to which concept."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tara.core.attention_maps import resized

Labels = Int[Tensor, "height width"]
"""The number of each cell's concept, from 1; 0 is the background, which belongs to no concept."""


def region_scores(
    maps: Sequence[Float[Tensor, "concepts _height _width"]],
) -> Float[Tensor, "concepts height width"]:
    """Divide each map by its maximum, resize all to the largest resolution and return their mean."""
    size = max((layer_maps.shape[-2], layer_maps.shape[-1]) for layer_maps in maps)
    scaled = [
        layer_maps / layer_maps.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(layer_maps.dtype).tiny)
        for layer_maps in maps
    ]
    return torch.stack([resized(layer_maps[None], size)[0] for layer_maps in scaled]).mean(0)


def region_labels(scores: Float[Tensor, "concepts height width"]) -> Labels:
    """Assign each cell to the concept with the highest score."""
    return scores.argmax(0) + 1


def labels_at(labels: Labels, size: tuple[int, int]) -> Int[Tensor, "new_height new_width"]:
    """The regions at another resolution.

    A smaller map takes the most common label of each cell; a larger one interpolates each label's indicator bilinearly
    and takes the largest.
    """
    if labels.shape == size:
        return labels
    count = int(labels.max()) + 1
    shares = F.one_hot(labels, count).permute(2, 0, 1)[None].float()
    smaller = size[0] < labels.shape[0] or size[1] < labels.shape[1]
    return (F.interpolate(shares, size=size, mode="area") if smaller else resized(shares, size))[0].argmax(0)
