"""The speed of composing on a tiny base: the rows and checks are there, and the operations are the same."""

from types import ModuleType
from typing import Any

import pytest
import torch


def test_every_way_to_compose_has_its_rows_and_bounds(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, family: Any, shape: Any
):
    monkeypatch.setattr(benchmark.speed, "WORDS", ("dog", "cat", "car", "toy"))  # a prompt has all of them
    counts = benchmark.Counts(cross_kv=(0, 4), attention=(1,), diffusers=(1,), published=(1, 2))
    adapter = benchmark.speed.random_adapters(benchmark.Base(family.build()), 1, "attention")[0]
    dense = benchmark.dense_bytes(adapter, torch.float32)
    rows = benchmark.measure(family.name, shape, "cpu", rounds=1, counts=counts, most_bytes=dense)
    steps = [(row["case"], row.get("adapters"), "skipped" in row) for row in rows if row["part"] == benchmark.STEP]
    assert steps == [
        ("untouched", None, False),
        ("untouched, again", None, False),
        ("tara cross_kv", 0, False),
        ("tara cross_kv", 4, False),
        ("tara attention", 1, False),
        ("diffusers", 1, False),
        ("published", 1, False),
        ("published", 2, True),
    ]
    checks = benchmark.checks_of(family.name, rows)
    assert all(set(one) == {"name", "value", "bound", "holds"} for one in checks)
    counted = {one["name"]: one for one in checks if "differ" in one["name"] or "FLOPs" in one["name"]}
    assert [(one["value"], one["holds"]) for one in counted.values()] == [(0, True)] * 4
    older = [{name: value for name, value in row.items() if name != "ratios"} for row in rows]
    assert [one["name"] for one in benchmark.checks_of(family.name, older)] == [one["name"] for one in checks]
    operations = [row for row in rows if row["part"] == benchmark.OPERATIONS]
    assert [row["case"] for row in operations] == ["tara cross_kv", "tara attention"]
    # keys and values of the text are prepared
    assert all(row["flops"] < row["flops_untouched"] for row in operations)
