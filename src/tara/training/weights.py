"""The low-rank factors of several concepts, side by side in one tensor."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tara.core.lora import LowRank, initial


class ConceptWeights:
    """Low-rank deltas of the same layers for several concepts.

    ``flat`` is one (concepts, size) leaf: the factors that learn are parts of it, layer by layer, so one product per
    layer serves all concepts, one norm clips each of them, and one optimiser update per concept moves all its layers.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        *,
        rank: int,
        scale: float,
        freeze_down: bool = False,
        generators: Sequence[torch.Generator],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Initialise the factors.

        Args:
            shapes: (d_in, d_out) of each layer.
            rank, scale: of every delta.
            freeze_down: whether every ``A`` stays as it was initialised.
            generators: one CPU generator per concept.
            device, dtype: where and in which precision the factors are kept and updated.
        """
        self._shapes = dict(shapes)
        self._rank, self.scale = rank, scale
        made = [self._initial(generator, dtype) for generator in generators]
        self._frozen: Float[Tensor, "concepts size"] | None = None
        if freeze_down:
            # outside the leaf, where weight decay does not reach them
            self._frozen = torch.stack([torch.cat([a for a, _ in layers]) for layers in made]).to(device)
        rows = [torch.cat([b if freeze_down else torch.cat([a, b]) for a, b in layers]) for layers in made]
        self.flat: Float[Tensor, "concepts size"] = torch.stack(rows).to(device).requires_grad_()

    def _initial(self, generator: torch.Generator, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        made = [
            initial(d_in, d_out, rank=self._rank, scale=self.scale, generator=generator, dtype=dtype)
            for d_in, d_out in self._shapes.values()
        ]
        return [(low_rank.a.flatten(), low_rank.b.flatten()) for low_rank in made]

    @property
    def concepts(self) -> int:
        return self.flat.shape[0]

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
        """A copy of one concept's deltas, on the CPU in float32 (float64 if they are kept so)."""
        kept = torch.float64 if self.flat.dtype == torch.float64 else torch.float32
        return {
            layer: LowRank(delta.a[concept].detach().cpu().clone(), delta.b[concept].detach().cpu().clone(), self.scale)
            for layer, delta in self.deltas(kept).items()
        }

    def load(self, flat: Float[Tensor, "concepts size"]) -> None:
        """Take up weights that a checkpoint holds."""
        assert flat.shape == self.flat.shape, "a checkpoint of the same concepts, layers and rank"
        with torch.no_grad():
            self.flat.copy_(flat)


def per_row(deltas: LowRank, rows_per_concept: int) -> LowRank:
    """A layer's deltas for every row of a batch whose rows lie concept by concept."""
    # expanded, not copied: a lone concept's factors are shared by its rows
    a, b = (factor[:, None].expand(-1, rows_per_concept, -1, -1).flatten(0, 1) for factor in (deltas.a, deltas.b))
    return LowRank(a, b, deltas.scale)
