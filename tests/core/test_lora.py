import numpy as np
import torch

from tara.core.lora import LowRank, RowLowRank, fresh, full_rank, row_delta


def test_a_fresh_delta_is_zero_and_drawn_from_its_generator_alone() -> None:
    one = fresh(6, 4, rank=3, generator=torch.Generator().manual_seed(5))
    other = fresh(6, 4, rank=3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert one.dense().count_nonzero() == 0
    assert torch.equal(one.a.double(), other.a)
    assert one.a.abs().max() <= 6**-0.5
    assert (one.rank, one.d_in, one.d_out) == (3, 6, 4)


def test_a_delta_is_its_dense_matrix_times_the_input() -> None:
    generator = np.random.default_rng(0)
    a, b, x = (generator.normal(size=shape) for shape in ((3, 6), (4, 3), (2, 5, 6)))
    delta = LowRank(torch.tensor(a), torch.tensor(b), 2.5).delta(torch.tensor(x))
    np.testing.assert_allclose(delta.numpy(), x @ (2.5 * b @ a).T, rtol=1e-12)


def test_each_row_has_its_own_delta() -> None:
    torch.manual_seed(0)
    a, b, x = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 3, 6), (2, 4, 3), (2, 5, 6)))
    scale = torch.tensor([0.5, 4.0], dtype=torch.float64)
    together = row_delta(x, a, b, scale)
    for row in range(2):
        alone = LowRank(a[row], b[row], float(scale[row])).delta(x[row])
        torch.testing.assert_close(together[row], alone, rtol=1e-12, atol=0)
    assert torch.equal(RowLowRank(a, b, scale).delta(x), together)


def test_a_whole_matrix_is_a_delta_of_full_rank_to_the_last_bit() -> None:
    for shape in ((5, 3), (3, 5), (4, 4)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        delta = full_rank(matrix)
        assert torch.equal(delta.dense(), matrix)
        assert (delta.rank, delta.d_in, delta.d_out) == (min(shape), shape[1], shape[0])
