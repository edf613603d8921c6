"""The quality study runs whole, with one step and one seed, and its result file has the rows that others build on."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with so few steps that only the form of its results can be judged."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("quality_toyland")
    shared = sys.modules["toyland_cast"]
    monkeypatch.setitem(shared.SETTINGS, "steps", 1)
    monkeypatch.setitem(shared.SETTINGS, "batch_size", 1)
    monkeypatch.setattr(shared, "SEEDS", (0,))
    monkeypatch.setattr(shared, "SAMPLING_STEPS", 1)
    monkeypatch.setattr(shared, "OTHER_PAIRS", ((0, 2),))
    monkeypatch.setattr(shared, "SAME_CLASS_PAIRS", ((0, 1),))
    monkeypatch.setattr(shared, "TRIPLES", ((0, 2, 4),))
    return module


@pytest.mark.slow
# its styles are trained as subjects are, of which a user is warned
@pytest.mark.filterwarnings("ignore:.*trains better with:tara.errors.TaraWarning")
def test_the_study_reports_one_default_row_for_each_kind_of_prompt(study: ModuleType):
    result = study.run(3, quick=False)
    assert (result["quick"], result["subjects_seed"]) == (False, 3)
    assert {"versions", "command", "hardware"} <= set(result)
    defaults = [(row["subjects"], row["same_class"]) for row in result["rows"] if row["default"]]
    assert sorted(defaults) == [(2, False), (2, True), (3, False)]
    columns = {"learning_rate", "training", "targets", "tfm", "tal", "tal_weight", "composer", "images"}
    for row in result["rows"]:
        assert columns <= set(row)
        for figure in ("success", "identity", "identity_alone", "leakage"):
            mean, low, high = row[figure]
            assert mean != mean or 0 <= low <= mean <= high <= 1  # nothing present: no likeness to measure
    series = {(row["training"], row["targets"], row["composer"]) for row in result["rows"]}
    assert series == {
        ("tara", "cross_kv", "tara"),
        ("tara", "cross_kv", "sum"),
        ("plain", "cross_kv", "sum"),
        ("tara", "attention", "tara"),
    }
    assert [(row["style"], row["training"]) for row in result["style"]] == [
        ("scanline", "tara"),
        ("blueprint", "tara"),
        ("scanline", "plain"),
        ("blueprint", "plain"),
    ]
    assert [check["name"] for check in result["checks"]] == [
        "success of tara, pairs",
        "success of tara minus plain sum, low end of 95 %",
        "identity alone minus composed",
        "success with class words only",
        "background, base minus tara",
    ]
