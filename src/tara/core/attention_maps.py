"""Where words attend: maps of cross-attention, and how alike two of them are."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

REGION = 0.5  # a word's region is where its map is at least half-way between its lowest and its highest value


def word_maps(
    query: Float[Tensor, "rows heads positions d"],
    key: Float[Tensor, "rows heads tokens d"],
    words: Sequence[Sequence[int]],
    mask: Float[Tensor, "rows #heads #positions tokens"] | None = None,
) -> Float[Tensor, "rows words positions"]:
    """How much each position attends to each word: mean over the heads and over the word's tokens.

    ``softmax(Q K^T / sqrt(d))`` over all tokens (Vaswani et al., arXiv 1706.03762), in float32 or better.

    Args:
        query: of the picture's positions.
        key: of the text's tokens.
        words: the positions of each word's tokens in the text.
        mask: added before the softmax.
    """
    precision = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(precision) @ key.to(precision).mT / math.sqrt(query.shape[-1])
    attended = (scores if mask is None else scores + mask).softmax(-1).mean(1)
    return torch.stack([attended[..., list(tokens)].mean(-1) for tokens in words], dim=1)


def map_size(positions: int, latents: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a feature map of so many positions: the latents' own, halved as a U-Net does, rounding up."""
    height, width = latents
    while height * width > positions:
        height, width = (height + 1) // 2, (width + 1) // 2
    assert height * width == positions, f"{positions} positions are no halving of {latents}"
    return height, width


def resized(
    maps: Float[Tensor, "rows words _height _width"], size: tuple[int, int]
) -> Float[Tensor, "rows words height width"]:
    """The maps at another size (bilinear), so that layers of different resolutions can be averaged."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


class RunningMean:
    """The mean of tensors of one shape, of which only the sum is kept."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, value: Tensor) -> None:
        """Take one more."""
        self._sum = value if self._sum is None else self._sum + value
        self._count += 1

    @property
    def mean(self) -> Tensor:
        """Of all that was added, which is at least one."""
        assert self._sum is not None
        return self._sum / self._count


def alignment(one: Float[Tensor, "height width"], other: Float[Tensor, "height width"]) -> float:
    """How well two words' maps lie on each other: their correlation, the cosine similarity of what is over their means.

    ``<a - mean(a), b - mean(b)> / (|a - mean(a)| |b - mean(b)|)`` (Pearson), the maps flattened. The paper (TARA, arXiv
    2508.08812) blames lost identities on a rare word whose map does not sit on its concept's region, pulls its keys to
    the class word's, and gives no formula for maps. This one compares in the maps what that loss aligns in the keys. It
    does not depend on how strongly either word is attended to, nor on what it gets everywhere, which the plain cosine
    similarity takes for agreement.

    Returns:
        1 for maps of one shape, 0 for unrelated ones, down to -1; 0 when one of them is the same everywhere.
    """
    a, b = (values.flatten().double() - values.double().mean() for values in (one, other))
    lengths = float(a.norm() * b.norm())
    return float(a @ b) / lengths if lengths else 0.0


def overlap(one: Float[Tensor, "height width"], other: Float[Tensor, "height width"]) -> float:
    """Intersection over union of two words' regions (`region`), 0 to 1.

    Thresholded maps are how DAAM (Tang et al., arXiv 2210.04885) compares a word's map with an object.
    """
    a, b = region(one), region(other)
    return float((a & b).sum()) / float((a | b).sum())


def region(values: Float[Tensor, "height width"]) -> Tensor:
    """Where a word attends most: at least half-way from the map's lowest to its highest value; a boolean map."""
    low, high = values.min(), values.max()
    return values >= low + REGION * (high - low)
