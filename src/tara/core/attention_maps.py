"""Maps of cross-attention: where words attend, and how similar two such maps are."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def word_maps(
    query: Float[Tensor, "rows heads positions d"],
    key: Float[Tensor, "rows heads tokens d"],
    words: Sequence[Sequence[int]],
    mask: Float[Tensor, "rows #heads #positions tokens"] | None = None,
) -> Float[Tensor, "rows words positions"]:
    """Attention of each position to each word: mean over the heads and over the word's tokens.

    ``softmax(Q K^T / sqrt(d))`` over all tokens (Vaswani et al., arXiv 1706.03762), in float32 or better.

    Args:
        query: queries of the image's positions.
        key: keys of the text's tokens.
        words: the positions of each word's tokens in the text.
        mask: added before the softmax.
    """
    precision = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(precision) @ key.to(precision).mT / math.sqrt(query.shape[-1])
    attention = (scores if mask is None else scores + mask).softmax(-1).mean(1)
    return torch.stack([attention[..., list(tokens)].mean(-1) for tokens in words], dim=1)


def map_size(positions: int, latents: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a feature map with this many positions: the latents' size, repeatedly halved, rounding up."""
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
    """Mean of tensors of one shape. Stores only their sum and their number."""

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._count = 0

    def add(self, value: Tensor) -> None:
        """Include one more tensor."""
        self._sum = value + self._sum
        self._count += 1

    @property
    def mean(self) -> Tensor:
        """Mean of all tensors added so far. At least one must have been added."""
        return torch.as_tensor(self._sum) / self._count


def map_correlation(one: Float[Tensor, "height width"], other: Float[Tensor, "height width"]) -> float:
    """Pearson correlation of two words' maps, from -1 to 1; 0 when one of them is the same everywhere.

    The paper (TARA, arXiv 2508.08812) explains lost identities by a rare word whose map misses the region of its
    concept. It aligns the rare word's keys with the class word's, but has no formula for maps. This correlation
    measures the same alignment in the maps. Unlike cosine similarity, it ignores a constant added to a map.
    """
    a, b = (values.flatten().double() - values.double().mean() for values in (one, other))
    return float(F.cosine_similarity(a, b, dim=0, eps=1e-100))


def overlap(one: Float[Tensor, "height width"], other: Float[Tensor, "height width"]) -> float:
    """Intersection over union, 0 to 1, of two maps thresholded by `above_half_range`.

    DAAM (Tang et al., arXiv 2210.04885) compares a word's thresholded map with an object in the same way.
    """
    a, b = above_half_range(one), above_half_range(other)
    return float((a & b).sum()) / float((a | b).sum())


def above_half_range(values: Float[Tensor, "height width"]) -> Bool[Tensor, "height width"]:
    """Where a map is at least half-way between its lowest and its highest value."""
    return values >= (values.min() + values.max()) / 2
