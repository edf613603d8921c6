"""The factors of several concepts in one tensor, with down matrices that learn or stay."""

from pathlib import Path

import pytest
import torch

from tara.errors import TaraError
from tara.families.base import Base
from tara.training.checkpoints import load_checkpoint, save_checkpoint
from tara.training.weights import ConceptWeights
from training_fixtures import all_same, quick, run_steps, training_of, two_concepts

SHAPES = {"first": (5, 3), "second": (2, 7)}


def weights(freeze_down: bool) -> ConceptWeights:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    return ConceptWeights(
        SHAPES,
        rank=4,
        scale=2.0,
        freeze_down=freeze_down,
        generators=generators,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def test_frozen_down_matrices_are_initialised_like_those_that_learn_and_lie_outside_the_leaf():
    learning, frozen = weights(False), weights(True)
    assert learning.flat.shape == (2, 4 * (5 + 3 + 2 + 7))
    assert frozen.flat.shape == (2, 4 * (3 + 7))
    for concept in range(2):
        for layer, low_rank in frozen.of_concept(concept).items():
            other = learning.of_concept(concept)[layer]
            assert not any(factor.requires_grad for factor in (low_rank.a, low_rank.b, other.a, other.b))
            assert torch.equal(low_rank.a, other.a)
            assert torch.equal(low_rank.b, other.b)
            assert (low_rank.d_in, low_rank.d_out) == SHAPES[layer]


@pytest.mark.parametrize("freeze_down", [False, True])
def test_gradients_reach_what_learns_and_nothing_else(freeze_down: bool):
    held = weights(freeze_down)
    deltas = held.deltas(torch.float32).values()
    for delta in deltas:
        assert delta.a.requires_grad is not freeze_down
        assert delta.b.requires_grad
    sum((2 * delta.a).sum() + (3 * delta.b).sum() for delta in deltas).backward()
    assert held.flat.grad is not None
    assert set(held.flat.grad.unique().tolist()) == ({3.0} if freeze_down else {2.0, 3.0})


def test_a_training_with_frozen_down_matrices_moves_the_others_alone_and_can_be_resumed(
    shared_base: Base, tmp_path: Path
):
    concepts, settings = two_concepts(tmp_path), quick(freeze_down=True, weight_decay=1.0)
    whole = training_of(concepts, settings, shared_base)
    before = whole.adapters()
    for record in whole.steps():
        if record.index == 2:
            state = load_checkpoint(save_checkpoint(tmp_path / "checkpoints", whole.state()))
    for first, last in zip(before, whole.adapters(), strict=True):
        assert all(torch.equal(low_rank.a, last.layers[layer].a) for layer, low_rank in first.layers.items())
        assert all(bool(low_rank.b.any()) for low_rank in last.layers.values())
    again = training_of(concepts, settings, shared_base)
    again.load(state)
    run_steps(again)
    assert all_same(whole.adapters(), again.adapters())
    with pytest.raises(TaraError, match="rank or freeze_down"):
        training_of(concepts, quick(), shared_base).load(state)
