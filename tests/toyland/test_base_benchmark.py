"""The benchmark of the base runs from end to end on a few prompts, and its file says what it measured."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, shipped: Path) -> ModuleType:
    """With two steps an image: what is generated then is of no account here."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("base_toyland")
    monkeypatch.setattr(module, "STEPS", 2)
    return module


def test_a_small_share_of_the_prompts_runs_through_everything(benchmark: ModuleType, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    benchmark.main(["--share", "0.001", "--threads", str(threads), "--out", str(tmp_path / "base.json")])
    result = json.loads((tmp_path / "base.json").read_text(encoding="utf-8"))
    assert result["prompts"] == 10
    for name in ("described_appearance", "two_described", "three_described"):
        assert 0 <= result[name] <= 1
    assert result["base_in_detail"]["three_described"].keys() == {"all", "classes", "attributes"}
    checks = {check["name"]: check["bound"] for check in result["checks"]}
    assert checks["one described in full"] == ">= 0.94"
    assert checks["two described in full"] == ">= 0.87"
    assert checks["three described in full"] == ">= 0.55"


def test_less_than_all_prompts_never_overwrite_the_committed_result(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--quick"], ["--share", "0.5"]):
        with pytest.raises(SystemExit):
            benchmark.main(arguments)
        assert "give --out FILE" in capsys.readouterr().err


def test_the_new_prompts_leave_the_former_ones_as_they_were(benchmark: ModuleType) -> None:
    prompts = benchmark.prompts_of(benchmark.Amounts())
    assert len(prompts) == 500
    assert prompts[0].text == "a robot in a meadow"
    assert prompts[-1].text == "a purple robot with a red belt and a gray crown in the forest"
