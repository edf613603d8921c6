"""The speed of training in its tiny form: every way to take a step has its row, and so has every number of concepts."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import tiny_bases


@pytest.mark.parametrize(
    ("family", "build"), [("sd15", tiny_bases.sd_pipeline), ("sdxl", tiny_bases.sdxl_pipeline)], ids=["sd15", "sdxl"]
)
def test_a_step_stands_beside_its_floor_and_the_usual_script(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, family: str, build: Callable[[], Any]
):
    monkeypatch.setattr(benchmark.speed, "random_pipeline", lambda _: build())
    shape = benchmark.speed.Shape(configs="sd1", dtype=torch.float32, pixels=32, own_pixels=32)
    rows = benchmark.measure(family, shape, rounds=1)
    assert [row["case"] for row in rows] == ["floor", "floor, again", "tara cross_kv", "tara attention", "usual script"]
    assert [one["bound"] for one in benchmark.checks_of(rows)] == ["<= 1.05"]


def test_concepts_of_one_run_are_counted_per_concept(benchmark: ModuleType):
    rows = benchmark.many_concepts(rounds=1, many=(1, 2))
    assert [row["concepts"] for row in rows] == [1, 2]
    assert [one["name"] for one in benchmark.checks_of(rows)] == [
        "toyland, 2 concepts in one run, time of each over alone"
    ]


def test_a_run_of_many_stands_beside_separate_runs(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch):
    trained: list[int] = []

    def run(_: object, concepts: list[Any], steps: int) -> tuple[float, int]:
        trained.append(len(concepts))
        return 2.0 + len(concepts) * steps, 100 * len(concepts)

    monkeypatch.setattr(benchmark.speed, "alone", run)
    rows = benchmark.whole_runs(rounds=2, many=(1, 2), steps=1)
    assert sorted(trained) == [1, 1, 1, 1, 1, 1, 2, 2]
    separate, together = (row for row in rows if row["concepts"] == 2)
    assert (separate["seconds"][0], separate["peak_memory_mib"]) == (3, 100)
    assert (together["seconds"][0], together["peak_memory_mib"]) == (2, 200)
    assert together["ratio"][0] == pytest.approx(2 / 3, abs=1e-3)
    assert [one["holds"] for one in benchmark.checks_of(rows)] == [True]


def test_a_whole_run_tells_its_seconds_and_its_memory(benchmark: ModuleType, tmp_path: Path):
    (concept,) = benchmark.concepts_in(tmp_path, 1)
    placed = concept.model_copy(update={"out": tmp_path / "x.safetensors"})
    seconds, mebibytes = benchmark.whole_run([placed], steps=1)
    assert seconds > 0
    assert 100 < mebibytes < 20_000
    assert placed.file.is_file()
