"""The recipe, the work folder, the command line and what is shipped."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

import toyland
from toyland import train
from toyland.autoencoder import AutoencoderRecipe, build_autoencoder
from toyland.denoiser_state import DenoiserRecipe, new_state
from toyland.judge import Judge
from toyland.judge_net import JudgeNet
from toyland.judge_training import JudgeRecipe
from toyland.render import render
from toyland.scenes import scene_number
from toyland.sheet import sheet_prompts
from toyland.text import TextRecipe
from toyland.workshop import Workshop
from toyland.world import UNNAMED_STYLES

CPU = torch.device("cpu")
RECIPE = {"scenes": {"seed": 1, "count": 4}, "denoiser": {"constant_steps": 1, "decay_steps": 1}}


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
