"""The demo runs whole, on the embedded base, with so few steps that only its files and metrics can be checked."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tara import demo
from tara.adapters.adapter import load_adapter
from tara.families.base import Base
from tara.families.loading import load_base


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_quick_base(*name: Any, **options: Any) -> Base:
        base = load_base(*name, **options)
        base.defaults = replace(base.defaults, steps=2)
        return base

    monkeypatch.setattr(demo, "load_base", load_quick_base)
    monkeypatch.setattr(demo, "SAMPLING_STEPS", 2)
    monkeypatch.setattr(demo, "SEEDS", (0, 1))
    monkeypatch.setattr(demo, "SHOWN_SEEDS", 2)


@pytest.mark.usefixtures("quick")
def test_the_demo_leaves_a_page_a_sheet_and_metrics_of_stable_names(tmp_path: Path):
    progress: list[tuple[str, float]] = []
    results = demo.run(tmp_path, lambda activity, fraction: progress.append((activity, fraction)))
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == results
    assert set(results) == {"seconds", "peak_memory_mib", "columns"}
    assert 0 < results["seconds"]["training"] < results["seconds"]["total"]
    assert 100 < results["peak_memory_mib"] < 20_000
    assert list(results["columns"]) == ["alone", "tara", "tara_sum", "plain_sum"]
    for column in results["columns"].values():
        assert set(column) == {"success", "identity"}
        assert all(0 <= metric <= 1 for metric in column.values())
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "tara demo" in html
    assert "plain LoRAs, summed" in html
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > sheet.height > 2 * 192  # seven columns, two rows of pictures
    fractions = [fraction for _, fraction in progress]
    assert fractions == sorted(fractions)
    assert fractions[-1] <= 1
    adapters = sorted(path.name for path in (tmp_path / "adapters").glob("*.safetensors"))
    assert adapters == [
        "szn-robot-plain.safetensors",
        "szn-robot-tara.safetensors",
        "xlo-cat-plain.safetensors",
        "xlo-cat-tara.safetensors",
    ]
    settings = [load_adapter(path).card.settings for path in sorted((tmp_path / "adapters").glob("*.safetensors"))]
    assert [one["token_mask"] for one in settings] == [False, True] * 2
    assert {(one["learning_rate"], one["batch_size"], one["lr_scheduler"], one["steps"]) for one in settings} == {
        (3e-3, 4, "cosine", 2)
    }
