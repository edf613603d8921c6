"""The demo runs whole, on the embedded base, with so few steps that only its files and figures can be judged."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tara import demo


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(demo.SETTINGS, "steps", 2)
    monkeypatch.setattr(demo, "SAMPLING_STEPS", 2)
    monkeypatch.setattr(demo, "SEEDS", (0, 1))
    monkeypatch.setattr(demo, "SHOWN_SEEDS", 2)


@pytest.mark.usefixtures("quick")
def test_the_demo_leaves_a_page_a_sheet_and_figures_of_stable_names(tmp_path: Path):
    told: list[tuple[str, float]] = []
    results = demo.run(tmp_path, lambda what, part: told.append((what, part)))
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == results
    assert set(results) == {"seconds", "peak_memory_mib", "columns"}
    assert 0 < results["seconds"]["training"] < results["seconds"]["total"]
    assert 100 < results["peak_memory_mib"] < 20_000
    assert list(results["columns"]) == ["alone", "tara", "tara_sum", "plain_sum"]
    for column in results["columns"].values():
        assert set(column) == {"success", "identity"}
        assert all(0 <= figure <= 1 for figure in column.values())
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "tara demo" in html
    assert "plain LoRA, summed" in html
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > sheet.height > 2 * 192  # seven columns, two rows of pictures
    parts = [part for _, part in told]
    assert parts == sorted(parts)
    assert parts[-1] <= 1
    adapters = sorted(path.name for path in (tmp_path / "adapters").glob("*.safetensors"))
    assert adapters == [
        "szn-robot-plain.safetensors",
        "szn-robot-tara.safetensors",
        "xlo-cat-plain.safetensors",
        "xlo-cat-tara.safetensors",
    ]
