"""Learning-rate schedules, compared with those of diffusers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.optimization import get_scheduler

from tara.training.optimizers import learning_rate_schedule


@pytest.mark.parametrize("name", ["constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"])
def test_the_learning_rate_follows_diffusers_schedule(name: Any):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    reference = get_scheduler(name, optimizer, num_warmup_steps=4, num_training_steps=20)
    ours = learning_rate_schedule(name, peak=0.3, warmup=4, steps=20)
    for step in range(20):
        assert ours(step) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


def test_a_constant_learning_rate_warms_up_when_asked_to():
    schedule: Callable[[int], float] = learning_rate_schedule("constant", peak=1.0, warmup=2, steps=4)
    assert [schedule(step) for step in range(4)] == [0, 0.5, 1, 1]
