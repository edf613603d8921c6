"""The low-rank factors of several concepts, side by side in one tensor."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tara.lora import LowRank, RowLowRank, fresh

Factors = tuple[Float[Tensor, "concepts rank d_in"], Float[Tensor, "concepts d_out rank"]]


class ConceptWeights:
    """Low-rank deltas of the same layers for several concepts.

    ``flat`` is one (concepts, size) leaf: the factors of a layer are parts of it, so one product per layer serves all
    concepts, one norm clips each of them, and one optimiser update per concept moves all its layers.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        *,
        rank: int,
        scale: float,
        generators: Sequence[torch.Generator],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Draw fresh factors.

        Args:
            shapes: (d_in, d_out) of each layer.
            rank: rank of every delta.
            scale: factor of every delta.
            generators: one CPU generator per concept.
            device: where the factors live.
            dtype: precision that the factors are kept and updated in.
        """
        self._shapes = dict(shapes)
        self._rank, self.scale = rank, scale
        self._sizes = [rank * width for shape in self._shapes.values() for width in shape]
        rows = [
            torch.cat([part for low_rank in self._fresh(generator, dtype) for part in low_rank])
            for generator in generators
        ]
        self.flat: Float[Tensor, "concepts size"] = torch.stack(rows).to(device).requires_grad_()

    def _fresh(self, generator: torch.Generator, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        drawn = [
            fresh(d_in, d_out, rank=self._rank, scale=self.scale, generator=generator, dtype=dtype)
            for d_in, d_out in self._shapes.values()
        ]
        return [(low_rank.a.flatten(), low_rank.b.flatten()) for low_rank in drawn]

    @property
    def concepts(self) -> int:
        """Number of concepts."""
        return self.flat.shape[0]

    def factors(self, dtype: torch.dtype) -> dict[str, Factors]:
        """Each layer's ``A`` and ``B`` for all concepts, cast to ``dtype``; gradients reach ``flat``."""
        # split, not slices: its backward pass is one concatenation instead of a sum of padded tensors
        parts = iter(self.flat.to(dtype).split(self._sizes, dim=1))
        return {
            layer: (
                next(parts).unflatten(1, (self._rank, d_in)),
                next(parts).unflatten(1, (d_out, self._rank)),
            )
            for layer, (d_in, d_out) in self._shapes.items()
        }

    def low_ranks(self, concept: int) -> dict[str, LowRank]:
        """A copy of one concept's deltas, on the CPU in float32 (float64 if they are kept so)."""
        kept = self.flat.detach()[concept].cpu().clone()
        kept = kept if kept.dtype == torch.float64 else kept.float()
        parts = iter(kept.split(self._sizes))
        return {
            layer: LowRank(
                next(parts).view(self._rank, d_in).clone(), next(parts).view(d_out, self._rank).clone(), self.scale
            )
            for layer, (d_in, d_out) in self._shapes.items()
        }

    def load(self, flat: Float[Tensor, "concepts size"]) -> None:
        """Take up weights that a checkpoint holds."""
        assert flat.shape == self.flat.shape, "a checkpoint of the same concepts, layers and rank"
        with torch.no_grad():
            self.flat.copy_(flat)


def per_row(factors: Factors, rows_per_concept: int, scale: float) -> RowLowRank:
    """A layer's deltas for every row of a batch whose rows lie concept by concept."""
    a, b = (_repeat(factor, rows_per_concept) for factor in factors)
    return RowLowRank(a, b, a.new_full((a.shape[0],), scale))


def _repeat(factor: Float[Tensor, "concepts n m"], rows_per_concept: int) -> Float[Tensor, "rows n m"]:
    # a lone concept's factors are shared by its rows without a copy
    return factor[:, None].expand(-1, rows_per_concept, -1, -1).flatten(0, 1)
