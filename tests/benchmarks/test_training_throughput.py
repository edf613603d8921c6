"""The throughput of training in its tiny form: rates follow from seconds and counted operations."""

from types import ModuleType

import pytest
import torch

import tiny_bases


# the compiler looks at tensors that are no leaves
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_rates_follow_from_seconds_and_operations(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(benchmark.speed, "random_pipeline", lambda _: tiny_bases.sd_pipeline())
    monkeypatch.setitem(benchmark.SIDE, "cpu", 64)
    monkeypatch.setattr(benchmark, "ENOUGH", 1e9)
    shape = benchmark.speed.Shape(configs="sd1", dtype=torch.float32, pixels=32, own_pixels=32)
    product, *steps = benchmark.measure("sd15", shape, "cpu", rounds=1, concepts=(1, 2), backend="eager")
    assert product["operations"] == 2 * 64**3
    assert product["utilisation"] == pytest.approx(1, rel=1e-3)
    assert [(row["concepts"], row["case"]) for row in steps] == [
        (count, case) for count in (1, 2) for case in ("as it is", "compiled")
    ]
    for row in steps:
        rate = row["operations"] / row["seconds"][0]
        assert row["utilisation"] == pytest.approx(rate / product["operations_per_second"], rel=1e-2)
        assert row["images_per_second"] == pytest.approx(row["concepts"] / row["seconds"][0], rel=1e-3)
        assert 0 < sum(row["profile"].values()) <= 1.001
    # one concept more is as many operations more
    assert steps[2]["operations"] == pytest.approx(2 * steps[0]["operations"], rel=0.05)
