"""The memory of training in its tiny form: what tensors hold is counted, and every part of it has a name."""

from types import ModuleType

import pytest
import torch

import tiny_bases


def test_tensors_are_counted_from_their_making_to_their_end(benchmark: ModuleType):
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


def test_checkpointing_lets_less_wait_for_the_backward_pass(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(benchmark.speed, "random_pipeline", lambda _: tiny_bases.sd_pipeline())
    shape = benchmark.speed.Shape(configs="sd1", dtype=torch.float32, own_pixels=32)
    rows = {saves: benchmark.measure("sd15", shape, 32, saves) for saves in (True, False)}
    caching, step = rows[True]
    unet = sum(parameter.nbytes for parameter in tiny_bases.sd_pipeline().unet.parameters())
    assert step["consists_of"]["weights"] == pytest.approx(unet / 2**30, rel=1e-3)
    assert sum(step["consists_of"].values()) == pytest.approx(step["gib"], rel=1e-3)
    assert step["consists_of"]["waiting"] < rows[False][1]["consists_of"]["waiting"]
    assert step["gib"] < rows[False][1]["gib"]
    assert caching["gib"] > caching["consists_of"]["weights"]
    assert [one["holds"] for one in benchmark.checks_of([caching, step])] == [True, True]
