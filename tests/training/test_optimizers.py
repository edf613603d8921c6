"""Each concept's optimizer steps as torch's own would on its row alone."""

import math
import sys

import pytest
import torch

from tara.errors import TaraError
from tara.training.optimizers import ConceptOptimizers, check_optimizer


def optimizers_of(weights: torch.Tensor, **changes: object) -> ConceptOptimizers:
    options = {"name": "adamw", "weight_decay": 0.1, "max_grad_norm": 0.5, "loss_scaling": False} | changes
    return ConceptOptimizers(weights, **options)  # type: ignore[arg-type]


def step(optimizers: ConceptOptimizers, learning_rate: float) -> list[float]:
    """One step as the training loop takes it; returns the norms before clipping."""
    norms = optimizers.gradient_norms().tolist()
    optimizers.step(learning_rate, norms)
    return norms


def test_a_row_moves_as_torchs_adamw_moves_it_after_torchs_clipping():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    gradients = torch.randn(5, 3, 7, generator=generator, dtype=torch.float64)
    weights = start.clone().requires_grad_()
    ours = optimizers_of(weights)
    references = [torch.nn.Parameter(row.clone()) for row in start]
    optimizers = [torch.optim.AdamW([row], lr=0.01, weight_decay=0.1) for row in references]
    for gradient in gradients:
        weights.grad = gradient.clone()
        norms = step(ours, 0.01)
        for index, (row, optimizer) in enumerate(zip(references, optimizers, strict=True)):
            row.grad = gradient[index].clone()
            norm = torch.nn.utils.clip_grad_norm_([row], 0.5)
            assert math.isclose(norms[index], float(norm), rel_tol=1e-12)
            optimizer.step()
    torch.testing.assert_close(weights.detach(), torch.stack([row.detach() for row in references]), rtol=1e-12, atol=0)


def test_an_overflow_halves_the_loss_scale_of_its_own_concept_only():
    weights = torch.zeros(2, 3, requires_grad=True)
    ours = optimizers_of(weights, loss_scaling=True)
    before = list(ours.loss_scales)
    weights.grad = torch.tensor([[math.inf, 0, 0], [before[1], 0, 0]])
    assert step(ours, 0.1) == [math.inf, 1.0]
    assert ours.loss_scales == [before[0] / 2, before[1]]
    assert torch.equal(weights.detach()[0], torch.zeros(3))
    assert float(weights.detach()[1, 0]) < 0


def test_a_loss_scale_grows_again_after_many_good_steps():
    weights = torch.zeros(1, 1, requires_grad=True)
    ours = optimizers_of(weights, loss_scaling=True)
    before = ours.loss_scales[0]
    for _ in range(2000):
        weights.grad = torch.zeros(1, 1)
        step(ours, 0.0)
    assert ours.loss_scales == [2 * before]


def test_a_gradient_that_is_not_clipped_is_left_as_it_is():
    weights = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    weights.grad = torch.tensor([[300.0, 400.0]], dtype=torch.float64)
    assert step(optimizers_of(weights, max_grad_norm=0.0), 0.1) == [500.0]


def test_prodigy_is_silent(capsys: pytest.CaptureFixture[str]):
    optimizers_of(torch.zeros(1, 2, requires_grad=True), name="prodigy")
    assert capsys.readouterr() == ("", "")


def test_a_missing_package_is_named_with_the_extra_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(TaraError, match=r"needs the package prodigyopt.*pip install 'tara-diffusion\[prodigy\]'"):
        check_optimizer("prodigy")
