"""The speed of composing in its tiny form: the rows and checks are there, and the operations are the same."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import tiny_bases

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with as many words as the tiny tokenizer can fit."""
    monkeypatch.setattr(benchmark.speed, "WORDS", ("dog", "cat", "car", "toy"))
    return benchmark


@pytest.mark.parametrize(
    ("family", "build"), [("sd15", tiny_bases.sd_pipeline), ("sdxl", tiny_bases.sdxl_pipeline)], ids=["sd15", "sdxl"]
)
def test_every_way_to_compose_has_its_rows_and_bounds(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, family: str, build: Callable[[], Any]
):
    monkeypatch.setattr(benchmark.speed, "random_pipeline", lambda _: build())
    shape = benchmark.speed.Shape(configs="sd1", dtype=torch.float32, pixels=64, own_pixels=64)
    counts = benchmark.Counts(cross_kv=(0, 1, 4), attention=(1, 2), diffusers=(1, 2), published=(1, 2, 4))
    dense = 2 * benchmark._dense_bytes(
        benchmark.speed.random_adapters(benchmark.Base(build()), 1, "attention")[0], torch.float32
    )
    rows = benchmark.measure(family, shape, "cpu", rounds=1, counts=counts, most_bytes=dense)
    steps = [(row["case"], row.get("adapters"), "skipped" in row) for row in rows if row["part"] == benchmark.STEP]
    assert steps == [
        ("untouched", None, False),
        ("untouched, again", None, False),
        *(("tara cross_kv", count, False) for count in (0, 1, 4)),
        *(("tara attention", count, False) for count in (1, 2)),
        *(("diffusers", count, False) for count in (1, 2)),
        *(("published", count, count == 4) for count in (1, 2, 4)),
    ]
    checks = benchmark.checks_of(family, rows)
    assert all(set(one) == {"name", "value", "bound", "holds"} for one in checks)
    counted = {one["name"]: one for one in checks if "differ" in one["name"] or "FLOPs" in one["name"]}
    assert [(one["value"], one["holds"]) for one in counted.values()] == [(0, True)] * 4
    older = [{name: value for name, value in row.items() if name != "ratios"} for row in rows]
    assert [one["name"] for one in benchmark.checks_of(family, older)] == [one["name"] for one in checks]
    counts = [row for row in rows if row["part"] == benchmark.OPERATIONS]
    assert [row["case"] for row in counts] == ["tara cross_kv", "tara attention"]
    assert all(row["flops"] < row["flops_untouched"] for row in counts)  # keys and values of the text are there already
