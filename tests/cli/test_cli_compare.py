"""`tara compare` end to end, on a tiny base of random weights."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from PIL import Image

from tara.cli import main
from tara.inference.composers import COMPOSERS
from tara.inference.provenance import read_provenance

PROMPT = "a xlo dog and a szn cat"


def _adapters(trained: Path) -> list[str]:
    return [part for name in ("rex", "tom") for part in ("-a", str(trained / f"{name}.safetensors"))]


def test_every_composer_is_on_the_sheet_in_the_table_and_in_the_results(
    trained: Path, base: Path, here: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["--base", str(base), "--device", "cpu", "--steps", "2", "--seeds", "0,4"]
    typed = ["compare", PROMPT, *_adapters(trained), *flags]
    assert main(typed) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMPOSERS)
    assert str(Path("compare", "index.html")) in printed
    results = json.loads(Path("compare/results.json").read_text(encoding="utf-8"))
    assert {"prompt", "seeds", "adapters", "settings", "clock", "composers", "versions", "command"} == set(results)
    assert (results["prompt"], results["seeds"], results["clock"]) == (PROMPT, [0, 4], "cpu")
    assert list(results["composers"]) == list(COMPOSERS)
    for name, entry in results["composers"].items():
        assert {"description", "prompt", "evaluations", "time_ratio", "seconds", "images"} == set(entry)
        assert entry["evaluations"] == (4 if name == "composite" else 2)
        assert entry["time_ratio"] > 0
        assert entry["images"] == [f"{name}/0001-seed0.png", f"{name}/0002-seed4.png"]
        assert all(Path("compare", image).is_file() for image in entry["images"])
    with Image.open("compare/sheet.png") as sheet:
        assert sheet.height > 7 * 176 > 2 * 176 < sheet.width
    html = Path("compare/index.html").read_text(encoding="utf-8")
    assert html.count("<img") == 2 * len(COMPOSERS)
    assert results["command"] == shlex.join(["tara", *typed])
    assert escape(results["command"]) in html


def test_a_compared_image_holds_how_to_generate_it_again(trained: Path, base: Path, here: Path):
    flags = ["--base", str(base), "--device", "cpu", "--steps", "3", "--seeds", "1"]
    assert main(["compare", PROMPT, *_adapters(trained), *flags, "--composers", "switch, none", "--out", "two"]) == 0
    assert sorted(path.name for path in Path("two").iterdir()) == [
        "index.html", "none", "results.json", "settings.json", "sheet.png", "switch",
    ]  # fmt: skip
    assert read_provenance(Path("two/switch/0001-seed1.png")).settings.composer == "switch"
    assert main(["generate", "--from", "two/switch/0001-seed1.png", "--device", "cpu", "--out", "again"]) == 0
    assert Path("again/0001-seed1.png").read_bytes() == Path("two/switch/0001-seed1.png").read_bytes()


def test_what_cannot_be_compared_is_refused_before_the_base(trained: Path, here: Path, refused: Any):
    rex, base = str(trained / "rex.safetensors"), ["--base", "no-such-folder"]
    (here / "file").write_text("in the way")
    cases: list[tuple[list[str], str]] = [
        (["-a", rex], "There is no prompt"),
        (["a dog", "-a", rex], "'xlo' is not in the prompt 'a dog'"),
        (["a dog", "-a", rex, "--composers", "sum,none"], "'xlo' is not in the prompt 'a dog'"),
        (["a xlo dog", "-a", rex, "--composers", "sum,swich"], "composer is 'swich'. Did you mean 'switch'?"),
        (["a xlo dog", "-a", rex, "--composers", ""], "composer is ''"),
        (["a xlo dog"], "There are no adapters"),
        (["a xlo dog", "-a", "none.safetensors"], "none.safetensors"),
        (["a xlo dog", "-a", rex, "--seeds", "3-1"], "Write the smaller number first"),
        (["a xlo dog", "-a", rex, "--scheduler", "eulr"], 'Did you mean "euler"'),
        (["a xlo dog", "-a", rex, "--composer", "sum"], "Did you mean --composers?"),
        (["a xlo dog", "-a", rex, "--out", str(here / "file")], "is a file, not a folder"),
        (["a dog", "-a", rex, "--composers", "sum,switch"], "no-such-folder"),  # plain LoRAs act on all tokens
    ]
    for arguments, sentence in cases:
        assert sentence in refused("compare", *arguments, *base), arguments
    assert [path.name for path in here.iterdir()] == ["file"]


def test_an_image_by_an_unknown_composer_is_refused(trained: Path, base: Path, here: Path, refused: Any):
    rex = str(trained / "rex.safetensors")
    assert "composer is 'product'" in refused("generate", "a xlo dog", "-a", rex, "--composer", "product")
