"""The recipe, the work folder, the command line and what is shipped."""

import json
import shutil
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

import toyland
from toyland import appearance, train
from toyland.appearance import AppearanceCounts
from toyland.autoencoder import AutoencoderRecipe, build_autoencoder
from toyland.code import PatchCode
from toyland.denoiser_state import DenoiserRecipe, new_state, steps_done
from toyland.judge import Judge
from toyland.judge_net import JudgeNet
from toyland.judge_training import JudgeRecipe
from toyland.reader_training import ReaderRecipe
from toyland.render import render
from toyland.scenes import rendered, scene_number
from toyland.sheet import sheet_prompts
from toyland.text import TextRecipe
from toyland.unet import draw_latents
from toyland.workshop import FITTED_ON, Workshop
from toyland.world import UNNAMED_STYLES, SceneDistribution

CPU = torch.device("cpu")
RECIPE: dict[str, Any] = {"scenes": {"seed": 1, "count": 4}, "denoiser": {"constant_steps": 1, "decay_steps": 1}}


def test_the_committed_recipe_fits_the_recipe_classes() -> None:
    recipe = tomllib.loads(train.RECIPE.read_text(encoding="utf-8"))
    classes = {"text": TextRecipe, "autoencoder": AutoencoderRecipe, "judge": JudgeRecipe, "denoiser": DenoiserRecipe}
    assert recipe.keys() == {"scenes", *classes}
    for name, kind in classes.items():
        assert kind(**recipe[name]).steps > 1000
    assert recipe["scenes"]["count"] >= 50_000


def test_the_recipe_of_the_further_training_names_the_same_scenes() -> None:
    first, further = (tomllib.loads(path.read_text(encoding="utf-8")) for path in (train.RECIPE, train.FURTHER))
    assert further.keys() == {"scenes", "denoiser"}
    assert further["scenes"] == first["scenes"]
    assert DenoiserRecipe(**further["denoiser"]).steps > 1000


def test_the_recipe_with_a_reader_fits_its_classes_and_keeps_the_shipped_code() -> None:
    first, reading = (tomllib.loads(path.read_text(encoding="utf-8")) for path in (train.RECIPE, train.READING))
    assert reading.keys() == {"scenes", "code", "reader", "denoiser", "appearance"}
    assert reading["code"]["seed"] == first["scenes"]["seed"]
    assert DenoiserRecipe(**reading["denoiser"]).reading_weight > 0
    assert ReaderRecipe(**reading["reader"]).steps > 1000
    assert AppearanceCounts(**reading["appearance"]).one >= 160
    scenes = reading["scenes"]
    assert SceneDistribution(counts=scenes["counts"], small_share=scenes["small_share"]).counts[2] >= 1 / 3


def test_an_unknown_stage_is_refused_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as exit_:
        train.main(["paint", "--work", str(tmp_path)])
    assert exit_.value.code == 2
    assert "there is no stage 'paint'; the stages are text, autoencoder" in capsys.readouterr().err


def test_a_stage_is_followed_by_its_mean_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shop = Workshop(tmp_path, RECIPE, CPU)
    steps = ((step, torch.tensor(float(step))) for step in range(1, 151))
    assert list(shop.follow("text", steps, 150)) == list(range(1, 151))
    lines = [json.loads(line) for line in (tmp_path / "text.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == [{"step": 100, "loss": 50.5}, {"step": 150, "loss": 125.5}]
    assert "text 100/150 loss 50.5" in capsys.readouterr().out
    with Image.open(tmp_path / "text.png") as curve:
        assert curve.size == (800, 450)


def test_the_work_folder_keeps_what_was_made(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, RECIPE, CPU)
    assert shop.pictures().shape == (4, 64, 64, 3)
    first, again = shop.code(), Workshop(tmp_path, RECIPE, CPU).code()
    assert torch.equal(first.basis, again.basis)


def test_a_recipe_may_name_another_distribution_and_another_series_for_the_code(tmp_path: Path) -> None:
    scenes = {"seed": 2, "count": 4, "counts": [0.0, 0.0, 1.0], "small_share": 0.5}
    shop = Workshop(tmp_path, {"scenes": scenes, "code": {"seed": 1}}, CPU)
    for index, picture in enumerate(shop.pictures()):
        assert len(shop.scene(index).things) == 3
        assert (picture == np.asarray(render(shop.scene(index)))).all()
    rendered(tmp_path, 1, 8)  # so few for the code as well, in place of what `code` would render
    (tmp_path / "scenes-1-8.npy").rename(tmp_path / f"scenes-1-{FITTED_ON}.npy")
    expected = PatchCode.fit(rendered(tmp_path / "own", 1, 8))
    assert torch.equal(shop.code().basis, expected.basis)


def test_the_judge_learns_from_the_bases_scenes_and_the_styles_kept_back(tmp_path: Path) -> None:
    pictures, scenes = train.judge_scenes(Workshop(tmp_path, RECIPE, CPU), styled=3)
    assert len(pictures) == len(scenes) == 7
    assert scenes[:4] == [scene_number(1, index) for index in range(4)]
    assert {scene.style for scene in scenes[4:]} <= set(UNNAMED_STYLES)
    for picture, scene in zip(pictures, scenes, strict=True):
        assert (picture == np.asarray(render(scene))).all()


def test_sheets_show_bare_and_full_prompts() -> None:
    prompts = sheet_prompts()
    assert len(set(prompts)) == len(prompts) == 24
    assert any(" with " in prompt for prompt in prompts)
    assert sheet_prompts() == prompts


@pytest.fixture
def exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel
) -> Path:
    """A base of untaught parts, written as the shipped one is."""
    shop = Workshop(tmp_path / "work", RECIPE, CPU)
    tokenizer.save_pretrained(shop.folder / "tokenizer")
    text_encoder.save_pretrained(shop.folder / "text_encoder")
    build_autoencoder().save_pretrained(shop.folder / "vae")
    state = new_state(DenoiserRecipe(), CPU)
    average = {f"average.{name}": value.contiguous() for name, value in state.average.items()}
    save_file(average, shop.folder / "denoiser.safetensors")
    save_file(JudgeNet().state_dict(), shop.folder / "judge.safetensors")
    (tmp_path / "base").mkdir()
    shutil.copy(toyland.BASE / "defaults.json", tmp_path / "base")
    monkeypatch.setattr(toyland, "BASE", tmp_path / "base")
    monkeypatch.setattr(toyland, "JUDGE", tmp_path / "judge.safetensors")
    train.export(shop)
    return tmp_path


def test_a_shipped_base_can_be_trained_on(exported: Path) -> None:
    shop = Workshop(exported / "further", RECIPE, CPU)
    train.adopt(shop)
    state = new_state(DenoiserRecipe(seed=99), CPU)
    assert state.load(shop.folder / "denoiser.safetensors") == 0
    shipped = StableDiffusionPipeline.from_pretrained(exported / "base", dtype=torch.float32).unet.state_dict()
    for name, value in state.unet.named_parameters():
        assert torch.equal(value, shipped[name]), name
        assert torch.equal(state.average[name], shipped[name]), name
    assert shop.tokenizer()("a cat")["input_ids"]
    assert not shop.text_encoder().training
    with pytest.raises(SystemExit, match="already holds a denoiser"):
        train.adopt(shop)


def test_what_is_exported_is_an_ordinary_pipeline_folder(exported: Path, tokenizer: CLIPTokenizer) -> None:
    assert (exported / "base" / "defaults.json").is_file()  # the settings that suit the base outlive an export
    sizes = [path.stat().st_size for path in (exported / "base").rglob("*.safetensors")]
    assert max(sizes) < 15e6
    assert sum(sizes) < 40e6
    pipe = StableDiffusionPipeline.from_pretrained(exported / "base", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a cat", num_inference_steps=1, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (64, 64)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.tokenizer("a cat")["input_ids"] == tokenizer("a cat")["input_ids"]
    Judge.load(exported / "judge.safetensors")([image])


SHORT: dict[str, Any] = {
    "scenes": {"seed": 1, "count": 6},
    "reader": {"steps": 2, "batch_size": 4},
    "denoiser": {"batch_size": 2, "constant_steps": 2, "decay_steps": 1, "reading_weight": 0.05},
    "appearance": {"one": 1, "two": 1, "three": 1, "every": 2},
}


def test_a_training_with_a_reader_from_the_shipped_base(
    exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stages of `recipe-reading.toml`, from the exported base to a branch of the checkpoint."""
    monkeypatch.setattr(train, "HELD_OUT", 4)
    monkeypatch.setattr(train, "sample_sheet", lambda *parts: Image.new("RGB", (8, 8)))
    monkeypatch.setattr(appearance, "draw_latents", partial(draw_latents, steps=1))
    shop = Workshop(exported / "reading", SHORT, CPU)
    train.adopt(shop)
    train.make_reader(shop)
    said = capsys.readouterr().out
    assert all(f"reader, {name}: class " in said for name in ("clean", "noisy", "estimated"))
    train.make_denoiser(shop)
    lines = [json.loads(line) for line in (shop.folder / "appearance.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [2, 3]
    assert lines[0]["one"].keys() == {"all", "classes", "attributes"}
    train.make_appearance(shop)
    assert len((shop.folder / "appearance.jsonl").read_text(encoding="utf-8").splitlines()) == 3

    train.branch(shop)
    assert "--constant-steps 3" in capsys.readouterr().out
    folder = shop.folder / "branch-000003"
    further = {**SHORT, "denoiser": {**SHORT["denoiser"], "constant_steps": 3, "decay_steps": 2}}
    train.make_denoiser(Workshop(folder, further, CPU))
    assert steps_done(folder / "denoiser.safetensors") == 5
    assert steps_done(shop.checkpoint) == 3  # the training that it branched from is as it was


def test_the_schedule_of_the_denoiser_can_be_given_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[DenoiserRecipe] = []
    monkeypatch.setitem(train.STAGES, "denoiser", lambda shop: given.append(DenoiserRecipe(**shop.recipe["denoiser"])))
    train.main(["denoiser", "--work", str(tmp_path), "--constant-steps", "12", "--decay-steps", "3"])
    train.main(["denoiser", "--work", str(tmp_path)])
    assert (given[0].constant_steps, given[0].decay_steps) == (12, 3)
    assert given[1].constant_steps == 14_000
