"""Sorts positions of feature maps into blocks, one group per block, so that the cost hardly grows with the adapters."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tara.core.lora import LowRank


@dataclass(frozen=True, eq=False)
class PositionBlocks:
    """Positions sorted by group and padded to whole blocks, so that one batched product computes all groups.

    Attributes:
        positions: for each block its positions, as flat indices (row * positions + position). A block that is not full
            is padded with a position of its group.
        group: the group of each block.
        weight: factor of each entry, 0 for padding.
        slot: for each flat index, where it is among the flattened entries of ``positions``; -1 if it is in no block.
    """

    positions: Int[Tensor, "blocks size"]
    group: Int[Tensor, " blocks"]
    weight: Float[Tensor, "blocks size"]
    slot: Int[Tensor, " flat_positions"]

    def gather(self, x: Float[Tensor, "rows positions d"]) -> Float[Tensor, "blocks size d"]:
        """The positions' values, block by block."""
        return x.flatten(0, 1)[self.positions]

    def scatter(self, values: Float[Tensor, "blocks size d"], rows: int) -> Float[Tensor, "rows positions d"]:
        """The inverse of `gather`. Every position must be in a block."""
        return values.flatten(0, 1)[self.slot].unflatten(0, (rows, -1))

    def add_delta(
        self,
        output: Float[Tensor, "rows positions d_out"],
        low_rank: LowRank,
        x: Float[Tensor, "rows positions d_in"],
    ) -> Float[Tensor, "rows positions d_out"]:
        """Add ``m s B_c A_c x`` at each position, where c is its group and m its weight.

        ``low_rank`` holds the groups' deltas along its leading axis. Positions in no block stay unchanged.
        """
        delta = low_rank.take(self.group).delta(self.gather(x)) * self.weight[..., None].to(x.dtype)
        added = output.flatten(0, 1).index_add(0, self.positions.flatten(), delta.flatten(0, 1).to(output.dtype))
        return added.view_as(output)


def position_blocks(
    groups: Int[Tensor, "rows positions"], size: int, weight: Float[Tensor, "rows positions"] | None = None
) -> PositionBlocks:
    """Sort positions into blocks of ``size``. Positions with a negative group are in no block."""
    flat = groups.flatten()
    order = flat.argsort(stable=True)
    order = order[flat[order] >= 0]
    group, counts = flat[order].unique_consecutive(return_counts=True)
    blocks = (counts + size - 1) // size
    first = counts.cumsum(0) - counts  # of each group, among the sorted positions
    padding = (blocks.cumsum(0) - blocks) * size - first  # padding entries before each group
    slots = torch.arange(len(order), device=flat.device) + padding.repeat_interleave(counts)
    positions = order[first].repeat_interleave(blocks * size)
    positions[slots] = order
    factors = torch.zeros(len(positions), device=flat.device)
    factors[slots] = 1.0 if weight is None else weight.flatten()[order].float()
    slot = torch.full_like(flat, -1)
    slot[order] = slots
    return PositionBlocks(positions.view(-1, size), group.repeat_interleave(blocks), factors.view(-1, size), slot)
