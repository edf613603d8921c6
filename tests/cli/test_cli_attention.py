"""`tara attention` end to end, on a tiny base of random weights."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from PIL import Image

import tiny_adapters
from tara.adapters.adapter import Adapter, load_adapter
from tara.analysis.attention import record_attention
from tara.analysis.attention_page import short_name
from tara.cli import main
from tara.inference.active_adapter import as_active_adapter
from tara.inference.pipeline import Pipeline
from tara.inference.request import GenerationRequest
from tara.inference.settings import GenerationSettings
from toyland import BASE, GUIDANCE_SCALE

PROMPT = "a xlo dog and a szn cat"
SCORES = {"map_correlation", "overlap", "other_correlation"}


def flags(trained: Path, base: Path, *more: str) -> list[str]:
    adapters = [part for name in ("rex", "tom") for part in ("-a", str(trained / f"{name}.safetensors"))]
    return [PROMPT, *adapters, "--base", str(base), "--device", "cpu", "--steps", "3", *more]


def asked(prompt: str, adapters: list[Any], seed: int = 0, **settings: Any) -> GenerationRequest:
    active = tuple(map(as_active_adapter, adapters))
    return GenerationRequest(prompt=prompt, adapters=active, seeds=(seed,), settings=GenerationSettings(**settings))


def saved(adapter: Adapter, path: str, **card: Any) -> str:
    """The same adapter in another file, with another card."""
    Adapter(adapter.card.model_copy(update=card), adapter.layers, name=path).save(Path(path))
    return path


def test_attention_leaves_a_page_a_sheet_the_scores_and_the_image_of_generate(
    trained: Path, base: Path, here: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["attention", *flags(trained, base, "--seed", "7", "--guidance-scale", "3")]) == 0
    assert {path.name for path in Path("attention").iterdir()} == {
        "index.html",
        "sheet.png",
        "attention.json",
        "0001-seed7.png",
        "settings.json",
    }
    assert "xlo and dog: map correlation" in capsys.readouterr().out
    assert main(["generate", *flags(trained, base, "--seeds", "7", "--guidance-scale", "3")]) == 0
    assert Path("attention/0001-seed7.png").read_bytes() == Path("out/0001-seed7.png").read_bytes()


def test_the_scores_are_there_for_the_whole_each_layer_and_each_step(trained: Path, base: Path, here: Path):
    assert main(["attention", *flags(trained, base)]) == 0
    facts = json.loads(Path("attention/attention.json").read_text(encoding="utf-8"))
    assert (facts["prompt"], facts["seed"]) == (PROMPT, 0)
    assert {*facts["measures"]} == SCORES
    ((dog, cat),) = [row["subjects"] for row in facts["rows"]]
    assert (dog["rare_word"], dog["class_word"], cat["rare_word"], cat["class_word"]) == ("xlo", "dog", "szn", "cat")
    assert (dog["tokens"]["rare_word"], dog["tokens"]["class_word"]) == ([2, 3], [4])
    assert len(dog["steps"]) == 3
    assert len(dog["layers"]) == 7
    for scores in (dog, *dog["layers"].values(), *dog["steps"]):
        assert all(-1 <= scores[name] <= 1 for name in SCORES)
    pipeline = Pipeline(base, device="cpu")
    adapters = [trained / f"{name}.safetensors" for name in ("rex", "tom")]
    (again,) = record_attention(pipeline, asked(PROMPT, adapters, steps=3))
    assert dog["map_correlation"] == pytest.approx(again.scores[0].map_correlation, abs=1e-6)


def test_adapters_of_the_same_words_are_rows_of_one_page(trained: Path, base: Path, here: Path):
    rex = load_adapter(trained / "rex.safetensors")
    evil = "<script>.safetensors"
    saved(rex, evil, settings={**rex.card.settings, "alignment_loss": "off"})
    assert main(["attention", *flags(trained, base, "-a", evil, "--out", "<b>")]) == 0
    facts = json.loads(Path("<b>/attention.json").read_text(encoding="utf-8"))
    assert [[one["adapter"] for one in row["subjects"]] for row in facts["rows"]] == [
        ["rex.safetensors", "tom.safetensors"],
        [evil, "tom.safetensors"],
    ]
    assert [row["label"] for row in facts["rows"]] == ["rex, tom: alignment loss l1", "<script>, tom"]
    assert Image.open("<b>/0001-seed0.png").tobytes() == Image.open("<b>/0002-seed0.png").tobytes()  # the same weights
    html = Path("<b>/index.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "<b>" not in html
    assert html.index("<img") < html.index('class="table"') < html.index("tara attention")
    assert html.count("<details>") == 4  # by layer and by step, of both rows


def test_one_adapter_at_two_weights_is_two_rows(trained: Path, base: Path, here: Path):
    rex = str(trained / "rex.safetensors")
    arguments = ["a xlo dog", "-a", rex, "-a", f"{rex}:0.5", "--base", str(base), "--steps", "1", "--device", "cpu"]
    assert main(["attention", *arguments]) == 0
    facts = json.loads(Path("attention/attention.json").read_text(encoding="utf-8"))
    assert [row["label"] for row in facts["rows"]] == [
        "rex: alignment loss l1",
        "rex at 0.5: alignment loss l1",
    ]


def test_the_command_on_the_page_is_the_one_that_was_typed(trained: Path, base: Path, here: Path):
    shutil.copy(trained / "rex.safetensors", "rex.safetensors")
    arguments = ["a xlo dog", "-a", "rex.safetensors:0.8", "--base", str(base), "--steps", "2", "--guidance-scale", "2"]
    assert main(["attention", *arguments, "--seed", "3", "--device", "cpu"]) == 0
    command = json.loads(Path("attention/attention.json").read_text(encoding="utf-8"))["command"]
    assert command == shlex.join(["tara", "attention", *arguments, "--seed", "3", "--device", "cpu"])
    assert escape(command) in Path("attention/index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["a xlo dog"], "There are no adapters"),
        (["a xlo", "-a", "rex.safetensors"], "Write 'xlo dog'"),
        (["a dog", "-a", "rex.safetensors"], "'xlo' is not in the prompt"),
        (["a xlo dog", "-a", "rex.safetensors", "--seed", "2.5"], "whole number"),
        (["a xlo dog", "-a", "rex.safetensors", "--out", "rex.safetensors"], "is a file"),
        (["a xlo dog", "-a", "none.safetensors"], "none.safetensors"),
        (["a xlo dog", "-a", "rex.safetensors", "--composer", "none"], "uses no rare words"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_sentence(
    arguments: list[str], part: str, trained: Path, base: Path, here: Path, refused: Any
):
    shutil.copy(trained / "rex.safetensors", "rex.safetensors")
    assert part in refused("attention", *arguments, "--base", base, "--device", "cpu", "--steps", "1")
    assert [path.name for path in here.iterdir()] == ["rex.safetensors"]


def test_a_layer_is_named_by_its_place():
    assert short_name("down_blocks.1.attentions.0.transformer_blocks.3.attn2") == "down 1.0.3"
    assert short_name("mid_block.attentions.0.transformer_blocks.0.attn2") == "mid 0.0"


def test_the_embedded_base_generates_the_same_image_while_it_is_recorded():
    pipeline = Pipeline(BASE, device="cpu")
    adapter, prompt = tiny_adapters.random_adapter(pipeline.base, class_word="cat"), "a xlo cat in the snow"
    (plain,) = pipeline(prompt, [adapter], seeds=[3], steps=2)
    (recorded,) = record_attention(pipeline, asked(prompt, [adapter], 3, steps=2))
    assert recorded.generated.image.tobytes() == plain.tobytes()
    assert pipeline.base.defaults.guidance_scale == GUIDANCE_SCALE
