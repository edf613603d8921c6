import torch
from hypothesis import given
from hypothesis import strategies as st

from tara.core.lora import LowRank
from tara.core.position_blocks import position_blocks

groups = st.lists(st.lists(st.integers(-1, 3), min_size=6, max_size=6), min_size=1, max_size=4).map(torch.tensor)
sizes = st.integers(1, 7)


@given(groups, sizes)
def test_blocks_hold_the_cells_of_one_group_each_and_every_cell_of_a_group_once(
    groups: torch.Tensor, size: int
) -> None:
    blocks = position_blocks(groups, size)
    real = blocks.weight > 0
    assert torch.equal(groups.flatten()[blocks.positions], blocks.group[:, None].expand(-1, size))
    assert blocks.positions[real].sort().values.tolist() == (groups.flatten() >= 0).nonzero().flatten().tolist()


@given(groups, sizes)
def test_fillers_are_fewer_than_a_block_for_each_group(groups: torch.Tensor, size: int) -> None:
    blocks = position_blocks(groups, size)
    assert int((blocks.weight == 0).sum()) <= len(blocks.group.unique()) * (size - 1)


@given(groups.map(lambda some: some.clamp(min=0)), sizes)
def test_what_is_gathered_is_scattered_back_to_its_place(groups: torch.Tensor, size: int) -> None:
    x = torch.randn(*groups.shape, 3)
    blocks = position_blocks(groups, size)
    assert torch.equal(blocks.scatter(blocks.gather(x), len(x)), x)


@given(groups, sizes)
def test_a_delta_acts_at_the_cells_of_its_group_with_their_weight(groups: torch.Tensor, size: int) -> None:
    x, weight = torch.randn(*groups.shape, 5), torch.rand(groups.shape)
    low_rank = LowRank(torch.randn(4, 2, 5), torch.randn(4, 3, 2), scale=0.5)
    output = torch.randn(*groups.shape, 3)
    expected = output.clone().double()
    for row, column in (groups >= 0).nonzero().tolist():
        a, b = (factor[groups[row, column]].double() for factor in (low_rank.a, low_rank.b))
        expected[row, column] += weight[row, column] * 0.5 * (b @ (a @ x[row, column].double()))
    ours = position_blocks(groups, size, weight).add_delta(output, low_rank, x)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)
