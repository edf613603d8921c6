"""How large deltas are beside the base, and the warning of those that leave nothing of it."""

import importlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tara.errors import TaraWarning
from tara.families.base import Base
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.fitting import LARGEST_RATIO, check_strength, strengths
from tara.inference.pipeline import Pipeline
from tiny_adapters import random_adapter

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_strength_is_the_deltas_norm_over_its_weights(any_pipe: Any):
    base = Base(any_pipe)
    layers = random_adapter(base).layers
    for path, strength in strengths(base, layers).items():
        weight = base.layer(path).weight.double()
        assert strength == pytest.approx(float(layers[path].dense().double().norm() / weight.norm()), rel=1e-4)


def test_only_a_weight_that_outweighs_the_base_is_warned_of(sd_pipe: Any):
    base = Base(sd_pipe)
    adapter = random_adapter(base)
    largest = max(strengths(base, adapter.layers).values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for weight in (0.9 * LARGEST_RATIO / largest, -0.9 * LARGEST_RATIO / largest, 0):
            check_strength(base, ActiveAdapter(adapter, weight=weight))
    for weight in (1.1 * LARGEST_RATIO / largest, -1.1 * LARGEST_RATIO / largest):
        with pytest.warns(
            TaraWarning, match=r"xlo-dog\.safetensors at weight .* changes '.*' by 1\.[67] times the norm of its weight"
        ):
            check_strength(base, ActiveAdapter(adapter, weight=weight))


def test_the_weight_that_the_warning_names_is_low_enough(sd_pipe: Any):
    base = Base(sd_pipe)
    adapter = random_adapter(base)
    with pytest.warns(TaraWarning) as heard:
        check_strength(base, ActiveAdapter(adapter, weight=1000))
    named = float(str(heard[0].message).split("below ")[1].removesuffix("."))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_strength(base, ActiveAdapter(adapter, weight=named))
        Pipeline(sd_pipe)("a xlo dog", [ActiveAdapter(adapter, weight=named)], [0], steps=1)


@pytest.mark.slow
def test_the_study_has_a_row_for_every_weight(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    study = importlib.import_module("strength_toyland")
    torch.manual_seed(0)
    rows = study.rows(weights=(1, 100), seeds=[0], steps=1)
    assert len({(row["case"], row["subject"], row["weight"]) for row in rows}) == len(rows) == 2 * 3 * 2
    assert all(other["largest_ratio"] >= row["largest_ratio"] for row, other in zip(rows[::2], rows[1::2], strict=True))
    checks = study.checks_of([*rows, {**rows[0], "largest_ratio": 5}])
    assert [one["bound"] for one in checks] == [">= 0.95", "<= 0.1", "<= 1.5"]
