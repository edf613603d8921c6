"""The study of regions runs whole with one step and one seed, resumes from its work folder, and says what it missed."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with so few steps that only the form of its results can be judged."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("regions_toyland")
    shared, work = sys.modules["toyland_cast"], sys.modules["study_work"]
    monkeypatch.setitem(shared.SETTINGS, "batch_size", 1)
    monkeypatch.setattr(shared, "TRIPLES", ((0, 2, 4),))
    monkeypatch.setattr(work, "PAIRS", ((0, 1), (0, 2)))
    monkeypatch.setattr(work, "SAMPLING_STEPS", 2)  # in the second of two steps adapters act in their regions
    return module


@pytest.mark.slow
def test_a_stopped_run_is_a_result_and_goes_on_from_what_it_kept(study: ModuleType, tmp_path: Path):
    composers = {"plain attention": ("regions", "sum", "true regions"), "tara cross_kv": ("tara", "regions")}
    kept: list[dict[str, Any]] = []
    result = study.run((3, 4), composers, (0,), 1, tmp_path, lambda one: kept.append(json.loads(json.dumps(one))))
    assert len(kept) == 10  # after each of two casts
    assert [row["prompts"] for row in kept[0]["rows"]] == ["alone", "pairs", "pairs of one class", "triples"]
    assert [row["images"] for row in kept[0]["rows"]] == [8, 2, 1, 1]
    assert [row["images"] for row in kept[1]["rows"]] == [16, 4, 2, 2]
    made = list(dict.fromkeys((row["kind"], row["composer"]) for row in result["rows"]))
    assert made == [(kind, composer) for kind, own in composers.items() for composer in own]
    alone = {(row["kind"], row["composer"]) for row in result["rows"] if row["prompts"] == "alone"}
    assert alone == {*made} - {("plain attention", "true regions")}
    against = [(row["kind"], row["regions_minus"]) for row in result["differences"]]
    assert against == [("plain attention", "sum"), ("plain attention", "true regions"), ("tara cross_kv", "tara")]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    files |= {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*-0000.png")}
    again = study.run((3, 4), composers, (0,), 1, tmp_path, lambda so_far: None)
    assert json.dumps(again["rows"]) == json.dumps(result["rows"])  # nan is not itself
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert study.sheet(study.Study(3, (0,), 1, tmp_path), "plain attention", ("regions", "sum")).width > 400


def test_regions_are_compared_with_the_best_of_the_merges_and_a_missed_floor_is_said(study: ModuleType):
    def row(composer: str, prompts: str, success: float) -> dict[str, Any]:
        return {"kind": "plain attention", "composer": composer, "prompts": prompts, "success": [success] * 3}

    def minus(composer: str, low: float) -> dict[str, Any]:
        return {"kind": "plain attention", "regions_minus": composer, "success": [low + 0.1, low, low + 0.2]}

    rows = [row("regions", "pairs", 0.7), row("regions", "pairs of one class", 0.4)]
    assert [one["holds"] for one in study.checks_of(rows, [])] == [True, False]
    rows += [row(composer, "pairs", success) for composer, success in (("sum", 0.0), ("ties", 0.1), ("dare", 0.05))]
    against = [minus("sum", 0.6), minus("ties", 0.44), minus("dare", 0.5), minus("true regions", -0.1)]
    *_, best = study.checks_of(rows, against)
    assert best == {
        "name": "regions minus the best merge (ties), pairs, low end of 95 %",
        "value": 0.44,
        "bound": "> 0.45",
        "holds": False,
    }
