"""Runs that are launched in several processes: one training, one output, one end; on CPUs, which stand for GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from launched_training import TIMEOUT, Finished, command, launched, train_folder
from tara.adapters.adapter import load_adapter
from tara.cli import main as command_line
from tara.errors import TaraError, TaraWarning
from tara.training.distributed import Processes, join
from tara.training.run.recipe_files import comparable, recipe_json
from tara.training.run.run import train_recipe
from tara.training.settings import Recipe
from training_fixtures import difference, in_float64, photo_folder, recipe_of

ROOT = Path(__file__).parents[2]
STEPS = 3

pytestmark = pytest.mark.timeout(2 * TIMEOUT + 60)


def shared_recipe(folder: Path, **changes: Any) -> Recipe:
    settings = {"steps": STEPS, "captions": "varied", "device": "cpu", "checkpoint_every": 2, "preview_every": 2}
    return recipe_of(folder, **settings, **changes)


def written(recipe: Recipe) -> Path:
    """The recipe as a folder that a run can be resumed from, before its first step."""
    recipe.run_folder.mkdir(parents=True)
    (recipe.run_folder / "settings.json").write_text(recipe_json(recipe, comparable(recipe)), encoding="utf-8")
    return recipe.run_folder


def metrics_of(recipe: Recipe) -> list[dict[str, Any]]:
    """The rows that a run has written."""
    text = (recipe.run_folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, list[Finished]]:
    """A training in two processes, and what they printed."""
    folder = tmp_path_factory.mktemp("together")
    recipe = shared_recipe(folder)
    return recipe, launched(train_folder, [written(recipe)], [folder, folder], folder / "printed")


def test_two_processes_learn_what_one_learns_with_twice_the_calls_in_each_step(
    together: tuple[Recipe, list[Finished]], sd_pipe: Any, tmp_path: Path
):
    recipe, finished = together
    assert [process.code for process in finished] == [0, 0], finished
    recipe_alone = shared_recipe(tmp_path, gradient_accumulation_steps=2)
    alone = train_recipe(recipe_alone, in_float64(sd_pipe))
    for concept, adapter in zip(recipe.concepts, alone, strict=True):
        shared = load_adapter(concept.file)
        assert difference(shared, adapter) < 1e-6
        assert shared.card.settings["processes"] == 2
        assert "processes" not in adapter.card.settings
    for shared_row, row in zip(metrics_of(recipe), metrics_of(recipe_alone), strict=True):
        for name, losses in row["concepts"].items():
            assert shared_row["concepts"][name] == pytest.approx(losses, rel=1e-6)


def test_only_the_main_process_writes_and_prints(together: tuple[Recipe, list[Finished]]):
    recipe, (main, other) = together
    assert main.out.split() == [str(step) for step in range(1, STEPS + 1)]
    assert (other.out, other.err) == ("", "")
    assert [row["step"] for row in metrics_of(recipe)] == list(range(1, STEPS + 1))
    assert len(list((recipe.run_folder / "previews").rglob("*.png"))) == 2


def test_ctrl_c_keeps_a_checkpoint_that_two_processes_go_on_from(
    together: tuple[Recipe, list[Finished]], tmp_path: Path
):
    recipe = shared_recipe(tmp_path)
    run = written(recipe)
    stopped = launched(train_folder, [run, 1], [tmp_path, tmp_path], tmp_path / "stopped")
    assert [process.code for process in stopped] == [130, 130], stopped
    assert f"step 1 is kept in {run.relative_to(tmp_path)}" in stopped[0].err
    assert "launched in 2 processes, as before" in stopped[0].err
    assert stopped[1].err == ""
    again = launched(train_folder, [run], [tmp_path, tmp_path], tmp_path / "again")
    assert again[0].out.split() == ["2", "3"], again
    for concept, whole in zip(recipe.concepts, together[0].concepts, strict=True):
        assert difference(load_adapter(concept.file), load_adapter(whole.file)) < 1e-6


def test_what_one_process_refuses_ends_all_of_them_with_one_sentence(base: Path, tmp_path: Path):
    main, other = tmp_path / "main", tmp_path / "other"
    photo_folder(main / "photos")
    other.mkdir()  # as on a machine that does not have the photos
    concept = ["--images", "photos", "--rare-word", "xlo", "--class-word", "dog", "--out", "rex.safetensors"]
    arguments = ["train", *concept, "--base", str(base), "--device", "cpu"]
    finished = launched(command, [arguments], [main, other], tmp_path / "printed")
    assert [process.code for process in finished] == [2, 2], finished
    assert finished[0].err.splitlines() == [
        "Error: There is no folder photos. Give the folder that holds the concept's photos."
    ]
    assert (finished[1].err, finished[1].out, finished[0].out) == ("", "", "")
    assert [path.name for folder in (main, other) for path in folder.iterdir()] == ["photos"]


@pytest.mark.parametrize(("number", "prints"), [("0", True), ("1", False)])
def test_what_every_process_refuses_is_printed_by_the_main_one(
    number: str, prints: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", number)
    assert command_line(["train", "--stpes", "4"]) == 2
    assert ("--stpes" in capsys.readouterr().err) == prints


def test_accelerate_launch_trains_by_the_published_script_in_two_processes(base: Path, tmp_path: Path):
    flags = {
        "pretrained_model_name_or_path": base,
        "instance_data_dir": photo_folder(tmp_path / "photos"),
        "instance_prompt": "a photo of xlo dog",
        "output_dir": tmp_path / "out",
        "rare_word": "xlo",
        "class_word": "dog",
        "max_train_steps": 2,
        "resolution": 32,
        "device": "cpu",
    }
    launcher = ["--multi_gpu", "--num_processes=2", "--num_machines=1", "--main_process_port=0"]
    launcher += ["--mixed_precision=no", "--dynamo_backend=no"]
    script = [str(ROOT / "train_dreambooth_tara_sd.py"), "--use_lora", "--focus", "--with_align_loss"]
    environment = {name: value for name, value in os.environ.items() if "RANK" not in name and "WORLD" not in name}
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *launcher, *script]
        + [f"--{name}={value}" for name, value in flags.items()],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        timeout=TIMEOUT,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("acts on 'xlo dog'") == 1
    (file,) = [path for path in (tmp_path / "out").iterdir() if path.is_file()]
    assert load_adapter(file).card.settings["processes"] == 2


def test_the_processes_share_the_calls_that_one_with_as_many_would_make():
    shared = [Processes(count=3, number=number).shard(step, 2) for step in range(4) for number in range(3)]
    alone = [Processes().shard(step, 6) for step in range(4)]
    assert [call for part in shared for call in part] == [call for part in alone for call in part] == list(range(24))


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("mps", "2 processes were launched, but the device 'mps' cannot be shared. Give cpu"),
        ("cuda:1", "the device 'cuda:1' cannot be shared"),
        ("cuda", "there are 1 CUDA devices here. Launch one for each device"),
    ],
)
def test_processes_without_a_device_each_are_refused(device: str, sentence: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(TaraError, match=sentence):
        join(device)


@pytest.mark.parametrize("cpu", ["True", "False"])
def test_a_launcher_that_has_started_one_process_in_place_of_several_is_warned_of(
    cpu: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", cpu)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.warns(TaraWarning, match="started one process only"):
        assert join("cpu").is_main
