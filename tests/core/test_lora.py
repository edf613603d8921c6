import numpy as np
import torch

from tara.core.lora import LowRank, low_rank_from_matrix, new_low_rank


def test_an_initial_delta_is_zero_and_a_function_of_its_generator_alone() -> None:
    one = new_low_rank(6, 4, rank=3, generator=torch.Generator().manual_seed(5))
    other = new_low_rank(6, 4, rank=3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert one.dense().count_nonzero() == 0
    assert torch.equal(one.a.double(), other.a)
    assert one.a.abs().max() <= 6**-0.5
    assert (one.rank, one.d_in, one.d_out) == (3, 6, 4)


def test_a_gaussian_first_matrix_is_that_of_diffusers_lora_layer() -> None:
    torch.manual_seed(5)
    theirs = torch.empty(8, 768)
    torch.nn.init.normal_(theirs, std=1 / 8)  # as diffusers' LoRALinearLayer, and PEFT's init_lora_weights="gaussian"
    ours = new_low_rank(768, 4, rank=8, init="gaussian", generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(ours.a, theirs)
    assert ours.b.count_nonzero() == 0


def test_a_delta_is_its_dense_matrix_times_the_input() -> None:
    generator = np.random.default_rng(0)
    a, b, x = (generator.normal(size=shape) for shape in ((3, 6), (4, 3), (2, 5, 6)))
    low_rank = LowRank(torch.tensor(a), torch.tensor(b), 2.5)
    np.testing.assert_allclose(low_rank.delta(torch.tensor(x)).numpy(), x @ (2.5 * b @ a).T, rtol=1e-12)
    np.testing.assert_allclose(low_rank.norm(), np.linalg.norm(2.5 * b @ a), rtol=1e-12)


def test_each_concept_has_its_own_delta() -> None:
    torch.manual_seed(0)
    a, b, x = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 3, 6), (2, 4, 3), (2, 5, 6)))
    concepts = LowRank(a, b, 2.5)
    assert (concepts.rank, concepts.d_in, concepts.d_out) == (3, 6, 4)
    together = concepts.delta(x)
    for concept in range(2):
        alone = LowRank(a[concept], b[concept], 2.5).delta(x[concept])
        torch.testing.assert_close(together[concept], alone, rtol=1e-12, atol=0)
    rows = concepts.take(torch.tensor([1, 0, 1]))
    torch.testing.assert_close(rows.delta(x[[1, 0, 1]]), together[[1, 0, 1]], rtol=1e-12, atol=0)


def test_a_whole_matrix_is_a_delta_of_full_rank_to_the_last_bit() -> None:
    for shape in ((5, 3), (3, 5), (4, 4)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        delta = low_rank_from_matrix(matrix)
        assert torch.equal(delta.dense(), matrix)
        assert (delta.rank, delta.d_in, delta.d_out) == (min(shape), shape[1], shape[0])
