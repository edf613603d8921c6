"""The factors of several concepts in one tensor, with down matrices that learn or stay."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tara.errors import TaraError
from tara.families.base import Base
from tara.training.loop import Training
from tara.training.run.checkpoints import load_checkpoint, save_checkpoint
from tara.training.weights import ConceptWeights
from training_fixtures import quick, two_concepts

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


def test_frozen_down_matrices_are_drawn_like_those_that_learn_and_lie_outside_the_leaf():
    learning, frozen = weights(False), weights(True)
    assert learning.flat.shape == (2, 4 * (5 + 3 + 2 + 7))
    assert frozen.flat.shape == (2, 4 * (3 + 7))
    for concept in range(2):
        for layer, low_rank in frozen.low_ranks(concept).items():
            other = learning.low_ranks(concept)[layer]
            assert not any(half.requires_grad for half in (low_rank.a, low_rank.b, other.a, other.b))
            assert torch.equal(low_rank.a, other.a)
            assert torch.equal(low_rank.b, other.b)
            assert (low_rank.d_in, low_rank.d_out) == SHAPES[layer]


@pytest.mark.parametrize("freeze_down", [False, True])
def test_gradients_reach_what_learns_and_nothing_else(freeze_down: bool):
    held = weights(freeze_down)
    for a, b in held.factors(torch.float32).values():
        assert a.requires_grad is not freeze_down
        assert b.requires_grad
    sum((2 * a).sum() + (3 * b).sum() for a, b in held.factors(torch.float32).values()).backward()
    assert held.flat.grad is not None
    assert set(held.flat.grad.unique().tolist()) == ({3.0} if freeze_down else {2.0, 3.0})


def test_a_training_with_frozen_down_matrices_moves_the_others_alone_and_can_be_resumed(sd_pipe: Any, tmp_path: Path):
    backbone, concepts = Base(sd_pipe), two_concepts(tmp_path)
    settings = quick(freeze_down=True, weight_decay=1.0)
    whole = Training(concepts, settings, backbone)
    before = whole.adapters()
    for record in whole.steps():
        if record.index == 2:
            state = load_checkpoint(save_checkpoint(tmp_path / "checkpoints", whole.state()))
    for first, last in zip(before, whole.adapters(), strict=True):
        assert all(torch.equal(low_rank.a, last.layers[layer].a) for layer, low_rank in first.layers.items())
        assert all(bool(low_rank.b.any()) for low_rank in last.layers.values())
    again = Training(concepts, settings, backbone)
    again.load(state)
    list(again.steps())
    for one, other in zip(whole.adapters(), again.adapters(), strict=True):
        assert all(torch.equal(low_rank.b, other.layers[layer].b) for layer, low_rank in one.layers.items())
    with pytest.raises(TaraError, match="rank or freeze_down"):
        Training(concepts, quick(), backbone).load(state)
