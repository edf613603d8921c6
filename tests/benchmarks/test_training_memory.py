"""The memory of training on a tiny base: tensors are counted while they are alive, and every part has a name."""

from types import ModuleType
from typing import Any

import pytest
import torch


def test_tensors_are_counted_from_allocation_to_deletion(benchmark: ModuleType):
    weight = torch.randn(100, 100, requires_grad=True)
    with benchmark.LiveBytes() as live:
        rows = torch.randn(1000, 100)
        rectified = (rows @ weight).relu()
        assert (live.now, live.most) == (2 * rows.nbytes, 3 * rows.nbytes)
        view = rows[:10]
        del rows
        assert live.now == 2 * rectified.nbytes  # the weight's gradient needs them still
        rectified.sum().backward()
        del rectified, view
        assert live.now == weight.nbytes  # its gradient
    assert live.most > 3 * 1000 * 100 * 4


@pytest.mark.parametrize("family", ["sd15"], indirect=True)
def test_checkpointing_keeps_less_for_the_backward_pass(benchmark: ModuleType, family: Any, shape: Any):
    rows = {saves: benchmark.measure(family.name, shape, 32, saves) for saves in (True, False)}
    caching, step = rows[True]
    unet = sum(parameter.nbytes for parameter in family.build().unet.parameters())
    assert step["consists_of"]["weights"] == pytest.approx(unet / 2**30, rel=1e-3)
    assert sum(step["consists_of"].values()) == pytest.approx(step["gib"], rel=1e-3)
    assert step["consists_of"]["waiting"] < rows[False][1]["consists_of"]["waiting"]
    assert step["gib"] < rows[False][1]["gib"]
    assert caching["gib"] > caching["consists_of"]["weights"]
    assert [one["holds"] for one in benchmark.checks_of([caching, step])] == [True, True]
