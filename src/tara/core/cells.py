"""Cells of feature maps in blocks of one group each, so that any number of adapters costs what one costs."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tara.core.lora import LowRank


@dataclass(frozen=True, eq=False)
class CellBlocks:
    """Cells sorted by group, each group filled up to whole blocks, so that one batched product serves all groups.

    Attributes:
        cells: each block's cells, as indices into rows * positions; fillers repeat a cell of their group.
        group: each block's group.
        weight: each cell's factor, 0 for fillers.
        slot: where each cell stands among the blocks' cells, in the order of the cells; -1 for one in no block.
    """

    cells: Int[Tensor, "blocks size"]
    group: Int[Tensor, " blocks"]
    weight: Float[Tensor, "blocks size"]
    slot: Int[Tensor, " cells"]

    def gather(self, x: Float[Tensor, "rows positions d"]) -> Float[Tensor, "blocks size d"]:
        """The cells' values, block by block."""
        return x.flatten(0, 1)[self.cells]

    def scatter(self, values: Float[Tensor, "blocks size d"], rows: int) -> Float[Tensor, "rows positions d"]:
        """`gather` undone, where every cell is in a block."""
        return values.flatten(0, 1)[self.slot].unflatten(0, (rows, -1))

    def add_delta(
        self,
        output: Float[Tensor, "rows positions d_out"],
        low_rank: LowRank,
        x: Float[Tensor, "rows positions d_in"],
    ) -> Float[Tensor, "rows positions d_out"]:
        """``y + m_c (s B_c A_c x)`` at the cells of each group c, with m the cells' weight; one pass for all groups.

        ``low_rank`` holds the groups' deltas along its leading axis.
        """
        delta = low_rank.take(self.group).delta(self.gather(x)) * self.weight[..., None].to(x.dtype)
        added = output.flatten(0, 1).index_add(0, self.cells.flatten(), delta.flatten(0, 1).to(output.dtype))
        return added.view_as(output)


def cell_blocks(
    groups: Int[Tensor, "rows positions"], size: int, weight: Float[Tensor, "rows positions"] | None = None
) -> CellBlocks:
    """Sort cells into blocks of ``size``; cells of a negative group are in none."""
    flat = groups.flatten()
    order = flat.argsort(stable=True)
    order = order[flat[order] >= 0]
    group, counts = flat[order].unique_consecutive(return_counts=True)
    blocks = (counts + size - 1) // size
    first = counts.cumsum(0) - counts  # of each group, among the sorted cells
    padding = (blocks.cumsum(0) - blocks) * size - first  # fillers before each group
    slots = torch.arange(len(order), device=flat.device) + padding.repeat_interleave(counts)
    cells = order[first].repeat_interleave(blocks * size)
    cells[slots] = order
    factors = torch.zeros(len(cells), device=flat.device)
    factors[slots] = 1.0 if weight is None else weight.flatten()[order].float()
    slot = torch.full_like(flat, -1)
    slot[order] = slots
    return CellBlocks(cells.view(-1, size), group.repeat_interleave(blocks), factors.view(-1, size), slot)
