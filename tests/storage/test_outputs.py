"""What exists is never replaced in silence: one rule for every command."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cli_commands import TINY, generate
from tara.adapters.adapter import load_adapter
from tara.cli import main
from tara.errors import TaraError, TaraWarning
from tara.inference.provenance import read_provenance
from tara.storage.outputs import image_name, is_finished, next_number, output_folder


def test_the_same_settings_are_finished_and_others_are_named(tmp_path: Path):
    place, asked = tmp_path / "rex.safetensors", {"rank": 4, "steps": 2}
    assert not is_finished(place, asked, None)
    place.write_bytes(b"")
    assert is_finished(place, asked, dict(reversed(asked.items())))
    with pytest.raises(TaraError, match=r"exists already and differs in: rank, seed\. Choose another --out"):
        is_finished(place, asked, {"rank": 8, "steps": 2, "seed": 1})
    with pytest.raises(TaraError, match=r"rex\.safetensors' exists already\. Choose another --out"):
        is_finished(place, asked, None)
    assert not is_finished(place, asked, None, overwrite=True)
    assert not is_finished(place, asked, {"rank": 8}, overwrite=True)


def test_an_output_folder_is_finished_by_its_last_result_alone(tmp_path: Path):
    out = tmp_path / "out"
    for expected, written in ((False, "first.json"), (False, "last.json"), (True, None)):
        with output_folder(out, {"seeds": (0, 1)}, "first.json", "last.json", overwrite=False) as finished:
            assert finished == expected
            if written is not None:
                (out / written).write_text("{}")
    assert json.loads((out / "settings.json").read_text()) == {"seeds": [0, 1]}


def test_a_command_that_fails_at_once_leaves_no_folder(tmp_path: Path):
    with pytest.raises(OSError), output_folder(tmp_path / "out", {}, "last.json", overwrite=False):  # noqa: PT011
        raise OSError
    assert list(tmp_path.iterdir()) == []


def test_results_of_others_are_not_replaced(tmp_path: Path):
    (tmp_path / "sheet.png").write_bytes(b"mine")
    with pytest.raises(TaraError, match="exists already"), output_folder(tmp_path, {}, "sheet.png", overwrite=False):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_numbers_go_on_behind_the_largest(tmp_path: Path):
    assert next_number(tmp_path / "none") == 1
    for name in ("0002-seed0.png", "0010-sheet.png", "9999.png", "notes-seed3.png", "12345-seed1.png"):
        (tmp_path / name).touch()
    assert next_number(tmp_path) == 12346
    assert image_name(7, 42) == "0007-seed42.png"


def test_a_second_prompt_leaves_the_first_ones_images(trained: Path, base: Path, here: Path, capsys: Any):
    assert generate(trained, base, "--seeds", "0-1") == 0
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert generate(trained, base, "--seeds", "0", prompt="a szn cat and a xlo dog") == 0
    after = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert before.items() <= after.items()
    assert {*after} - {*before} == {"0004-seed0.png"}
    assert read_provenance(Path("out/0004-seed0.png")).prompt == "a szn cat and a xlo dog"
    assert "0004-seed0.png" in capsys.readouterr().out


def test_the_same_images_again_are_said_to_exist(trained: Path, base: Path, here: Path, capsys: Any):
    assert generate(trained, base, "--seeds", "0-2") == 0
    Path("out/0002-seed1.png").write_bytes(b"half an image")
    before = {path.name for path in Path("out").iterdir()}
    assert generate(trained, base, "--seeds", "0-2") == 0
    assert "3 images (2 existed already)" in capsys.readouterr().out
    assert {path.name for path in Path("out").iterdir()} - before == {"0005-seed1.png"}


def train(trained: Path, base: Path, *more: str) -> list[str]:
    words = ["--rare-word", "xlo", "--class-word", "dog", "--base", str(base)]
    return ["train", "--images", str(trained / "dog"), *words, *TINY, "--out", "rex.safetensors", *more]


def test_a_finished_adapter_is_kept_and_the_difference_named(
    trained: Path, base: Path, here: Path, refused: Any, capsys: Any
):
    assert main(train(trained, base)) == 0
    whole = Path("rex.safetensors").read_bytes()
    assert main(train(trained, base)) == 0
    assert "Already trained with these settings: rex.safetensors." in capsys.readouterr().err
    assert main(["train", "rex.run"]) == 0  # its recipe holds the base's defaults
    assert "Already trained" in capsys.readouterr().err
    said = refused(*train(trained, base, "--learning-rate", "1e-2", "--seed", "3"))
    assert said.startswith("'rex.safetensors' exists already and differs in: learning_rate, seed. Choose another --out")
    assert Path("rex.safetensors").read_bytes() == whole
    assert main(train(trained, base, "--learning-rate", "1e-2", "--seed", "3", "--overwrite")) == 0
    assert load_adapter("rex.safetensors").card.settings["learning_rate"] == 1e-2


def test_other_photos_are_other_settings_and_a_moved_folder_is_not(trained: Path, base: Path, here: Path, refused: Any):
    assert main(train(trained, base)) == 0
    shutil.copytree(trained / "dog", "moved")
    again = train(trained, base)
    again[2] = "moved"
    assert main(again) == 0
    shutil.copy(trained / "cat" / "0.png", "moved/new.png")
    assert "differs in: images." in refused(*again)


def test_an_adapter_of_unknown_settings_is_not_replaced(trained: Path, base: Path, here: Path, refused: Any):
    shutil.copy(trained / "tom.safetensors", "rex.safetensors")
    assert "'rex.safetensors' exists already. Choose another --out" in refused(*train(trained, base))
    assert load_adapter("rex.safetensors").card.rare_word == "szn"


def test_training_from_python_returns_the_adapter_that_exists(trained: Path, base: Path, here: Path):
    from tara.training.run.recipe_files import read_recipe
    from tara.training.run.run import train_recipe

    assert main(train(trained, base)) == 0
    with pytest.warns(TaraWarning, match="Already trained"):
        (adapter,) = train_recipe(read_recipe(Path("rex.run")))
    assert adapter.card == load_adapter("rex.safetensors").card


def test_convert_never_rewrites_its_input_unasked(trained: Path, here: Path, refused: Any):
    shutil.copy(trained / "rex.safetensors", "rex.safetensors")
    before = Path("rex.safetensors").read_bytes()
    convert = ["convert", "rex.safetensors", "--out"]
    assert "'rex.safetensors' exists already" in refused(*convert, "rex.safetensors", "--to", "kohya")
    assert Path("rex.safetensors").read_bytes() == before
    for to, out in (("kohya", "k.safetensors"), ("peft", "folder")):
        for _ in range(2):
            assert main([*convert, out, "--to", to]) == 0
    assert "exists already" in refused("convert", trained / "tom.safetensors", "--to", "peft", "--out", "folder")
    assert main([*convert, "rex.safetensors", "--to", "kohya", "--overwrite"]) == 0
    assert Path("rex.safetensors").read_bytes() != before


@pytest.mark.parametrize("command", ["compare", "attention"])
def test_a_page_of_other_settings_is_kept(
    command: str, trained: Path, base: Path, here: Path, refused: Any, capsys: Any
):
    flags = ["-a", str(trained / "rex.safetensors"), "--base", str(base), "--device", "cpu", "--steps", "2"]
    flags += ["--seeds", "0", "--composers", "tara"] if command == "compare" else []
    assert main([command, "a xlo dog", *flags]) == 0
    before = {path: path.read_bytes() for path in Path(command).rglob("*.*")}
    assert main([command, "a xlo dog", *flags]) == 0
    assert "exist already" in capsys.readouterr().out
    assert f"'{command}' exists already and differs in: prompt." in refused(command, "the xlo dog", *flags)
    assert {path: path.read_bytes() for path in Path(command).rglob("*.*")} == before
    assert main([command, "the xlo dog", *flags, "--overwrite"]) == 0
    assert before != {path: path.read_bytes() for path in Path(command).rglob("*.*")}


def test_the_published_script_goes_on_with_the_next_number(trained: Path, base: Path, here: Path):
    from tara.cli.published import INFERENCE, run

    flags = [f"--pretrained_model_name_or_path={base}", f"--lora_list={trained / 'rex.safetensors'}"]
    flags += ["--prompt=a xlo dog", "--num_inference_steps=1", "--device=cpu"]
    for number in ("2", "1"):
        assert run(INFERENCE, [*flags, f"--number={number}"]) == 0
    assert [read_provenance(Path(f"output/output_image_{n}.png")).seed for n in range(3)] == [0, 1, 0]
