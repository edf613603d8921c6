"""The method's two formulas, against the same formulas written out token by token in float64."""

import runpy

import numpy as np
import pytest
import torch

import tara.core.method
from tara.core.lora import LowRank
from tara.core.method import add_masked_delta, token_alignment_loss

ROWS, TOKENS, D_TEXT, WIDTH, RANK, SCALE = 2, 5, 6, 4, 3, 2.5


def test_a_masked_delta_is_its_formula_in_float64() -> None:
    random = np.random.default_rng(0)
    x, w, a, b = (
        random.normal(size=shape) for shape in ((ROWS, TOKENS, D_TEXT), (WIDTH, D_TEXT), (RANK, D_TEXT), (WIDTH, RANK))
    )
    masked, weight = [(0, 1), (0, 2), (1, 4)], 0.7
    expected = x @ w.T
    for row, token in masked:
        expected[row, token] += weight * SCALE * b @ (a @ x[row, token])
    frozen, low_rank = torch.tensor(x @ w.T), LowRank(torch.tensor(a), torch.tensor(b), SCALE)
    inputs = torch.tensor(np.stack([x[place] for place in masked]))
    positions = torch.tensor([row * TOKENS + token for row, token in masked])
    keys = add_masked_delta(frozen, low_rank, inputs, positions, weight)
    np.testing.assert_allclose(keys.numpy(), expected, rtol=1e-12)
    unmasked = torch.ones(ROWS, TOKENS, dtype=torch.bool).flatten()
    unmasked[positions] = False
    assert torch.equal(keys.flatten(0, 1)[unmasked], frozen.flatten(0, 1)[unmasked])  # to the last bit
    np.testing.assert_array_equal(frozen.numpy(), x @ w.T)  # the argument stays what it was


def test_without_a_mask_every_token_gets_its_concepts_delta() -> None:
    random = np.random.default_rng(1)
    x, w, a, b = (
        random.normal(size=shape)
        for shape in ((ROWS, TOKENS, D_TEXT), (WIDTH, D_TEXT), (ROWS, RANK, D_TEXT), (ROWS, WIDTH, RANK))
    )
    expected = np.stack([x[row] @ (w + SCALE * b[row] @ a[row]).T for row in range(ROWS)])
    keys = add_masked_delta(
        torch.tensor(x @ w.T), LowRank(torch.tensor(a), torch.tensor(b), SCALE), torch.tensor(x), None
    )
    np.testing.assert_allclose(keys.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("subwords", ["mean", "each"])
@pytest.mark.parametrize("form", ["l1", "squared"])
def test_the_alignment_loss_is_its_formula_in_float64(form: str, subwords: str) -> None:
    random = np.random.default_rng(0)
    x_rare, x_class = random.normal(size=(2, D_TEXT)), random.normal(size=(3, D_TEXT))
    expected, rare_keys, class_keys = [], [], []
    for width in (8, 12):
        w, a, b = (random.normal(size=shape) for shape in ((width, D_TEXT), (RANK, D_TEXT), (width, RANK)))
        # the rare word's keys W x + s B A x or their mean, minus the mean over the class word's tokens of W x
        pieces = [w @ x + SCALE * b @ (a @ x) for x in x_rare]
        class_key = sum(w @ x for x in x_class) / 3
        compared = pieces if subwords == "each" else [sum(pieces) / 2]
        distances = [np.abs(key - class_key) if form == "l1" else (key - class_key) ** 2 for key in compared]
        expected.append(sum(distance.sum() / width for distance in distances) / len(distances))
        rare_keys.append(torch.tensor(x_rare @ w.T + SCALE * x_rare @ a.T @ b.T))
        class_keys.append(torch.tensor(x_class @ w.T))
    loss = token_alignment_loss(rare_keys, class_keys, form, subwords)  # type: ignore[arg-type]
    np.testing.assert_allclose(loss.item(), sum(expected) / len(expected), rtol=1e-12)


def test_the_file_runs_as_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(tara.core.method.__file__), run_name="__main__")
    expected = "composed: only these words' keys differ from the base's: ['xlo', 'szn']\n"
    assert capsys.readouterr().out == expected
