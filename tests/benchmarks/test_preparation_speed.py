"""The speed of preparing in its tiny form: its rows are there, and switching adapters neither writes nor recompiles."""

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
    """The script, with words that the tiny tokenizer can fit."""
    monkeypatch.setattr(benchmark.speed, "WORDS", ("dog", "cat", "car", "toy", "house", "robot", "rex", "tom"))
    return benchmark


@pytest.mark.parametrize(
    ("family", "build"), [("sd15", tiny_bases.sd_pipeline), ("sdxl", tiny_bases.sdxl_pipeline)], ids=["sd15", "sdxl"]
)
def test_switching_adapters_writes_no_weight_and_recompiles_nothing(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, family: str, build: Callable[[], Any]
):
    monkeypatch.setattr(benchmark.speed, "random_pipeline", lambda _: build())
    shape = benchmark.speed.Shape(configs="sd1", dtype=torch.float32, pixels=64, own_pixels=64)
    rows = benchmark.measure(family, shape, rounds=1, adapters=8)
    assert {row["part"] for row in rows} == {"preparing", "loading", "memory", "switching"}
    (switching,) = [row for row in rows if row["part"] == "switching"]
    assert (switching["weights_changed"], switching["recompilations"]) == (0, 0)
    assert switching["graphs"] >= 1
    (memory,) = [row for row in rows if row["part"] == "memory"]
    assert memory["dense_matrices"] == 0
    assert [one["bound"] for one in benchmark.checks_of(rows)] == [
        "<= 0.01",
        "<= 2",
        *("<= 0.05", "<= 0.05", "<= 0"),
        *("<= 0", "<= 0"),
    ]


def test_commands_are_started_until_their_first_step(benchmark: ModuleType):
    rows = benchmark.starting(rounds=1)
    assert [row["case"] for row in rows] == ["tara --help", "tara generate, first denoising step"]
    assert [one["name"] for one in benchmark.checks_of(rows)] == ["tara --help, seconds"]
