"""The low-rank factors of several concepts in one flat tensor."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tara.core.lora import InitialWeights, LowRank, new_low_rank


class ConceptWeights:
    """Low-rank deltas of the same layers for several concepts.

    ``flat`` is one (concepts, size) leaf: the trained factors are views of it, layer by layer, so one product per
    layer serves all concepts, one norm clips each of them, and one optimizer update per concept moves all its layers.

    Args:
        shapes: (d_in, d_out) of each layer.
        rank, scale: of every delta.
        initial_weights: the distribution of the first ``A``, see `tara.core.lora.new_low_rank`.
        freeze_down: whether every ``A`` stays as it was initialised.
        generators: one CPU generator per concept.
        device, dtype: where and in which precision the factors are kept and updated.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        *,
        rank: int,
        scale: float,
        initial_weights: InitialWeights = "uniform",
        freeze_down: bool = False,
        generators: Sequence[torch.Generator],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._shapes, self._rank, self.scale = dict(shapes), rank, scale
        down: list[Tensor] = []
        rows: list[Tensor] = []
        for generator in generators:
            layers = [
                new_low_rank(*size, rank=rank, init=initial_weights, generator=generator, dtype=dtype)
                for size in self._shapes.values()
            ]
            down.append(torch.cat([layer.a.flatten() for layer in layers]))
            factors = [factor for layer in layers for factor in ((layer.b,) if freeze_down else (layer.a, layer.b))]
            rows.append(torch.cat([factor.flatten() for factor in factors]))
        # outside the leaf, so that weight decay does not change them
        self._frozen = torch.stack(down).to(device) if freeze_down else None
        self.flat: Float[Tensor, "concepts size"] = torch.stack(rows).to(device).requires_grad_()

    def deltas(self, dtype: torch.dtype) -> dict[str, LowRank]:
        """Each layer's deltas of all concepts, cast to ``dtype``; gradients reach ``flat``."""
        down = [self._rank * d_in for d_in, _ in self._shapes.values()]
        up = [self._rank * d_out for _, d_out in self._shapes.values()]
        # split, not slices: its backward pass is one concatenation instead of a sum of padded tensors
        if self._frozen is None:
            parts = self.flat.to(dtype).split([size for pair in zip(down, up, strict=True) for size in pair], dim=1)
            halves = zip(parts[::2], parts[1::2], strict=True)
        else:
            halves = zip(self._frozen.to(dtype).split(down, dim=1), self.flat.to(dtype).split(up, dim=1), strict=True)
        return {
            layer: LowRank(a.unflatten(1, (self._rank, d_in)), b.unflatten(1, (d_out, self._rank)), self.scale)
            for (layer, (d_in, d_out)), (a, b) in zip(self._shapes.items(), halves, strict=True)
        }

    def of_concept(self, concept: int) -> dict[str, LowRank]:
        """A copy of one concept's deltas on the CPU, in the precision in which they are stored."""
        return {
            layer: LowRank(delta.a[concept].detach().cpu().clone(), delta.b[concept].detach().cpu().clone(), self.scale)
            for layer, delta in self.deltas(self.flat.dtype).items()
        }


def per_row(deltas: LowRank, rows_per_concept: int) -> LowRank:
    """A layer's deltas for every row of a batch whose rows are grouped by concept."""
    # expanded, not copied: the rows of a single concept share its factors
    a, b = (factor[:, None].expand(-1, rows_per_concept, -1, -1).flatten(0, 1) for factor in (deltas.a, deltas.b))
    return LowRank(a, b, deltas.scale)
