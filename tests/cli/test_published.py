"""The published scripts' commands, as they are typed, on a tiny base of random weights."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tiny_bases
from published_commands import DRAW_TWO, TRAIN_SD, TRAIN_SDXL, typed
from tara.adapters.adapter import load_adapter
from tara.cli.published import INFERENCE, SCRIPTS, SD_TRAINING, SDXL_TRAINING, run
from tara.cli.published.inference import order_of
from tara.cli.published.page import markdown
from tara.cli.published.script import Script, read_flags
from tara.cli.published.training import recipe_of
from tara.errors import TaraError
from tara.inference.provenance import PictureSettings, read_origin
from tara.training.settings import ConceptSettings, TrainSettings
from training_fixtures import photo_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """The output folders ``dog`` and ``cat`` of the SD script."""
    folder = tmp_path_factory.mktemp("trained")
    for kind, word in (("dog", "xlo"), ("cat", "szn")):
        replaced = {
            "stabilityai/stable-diffusion-v1-5": base,
            "path/to/your/images": photo_folder(folder / f"{class_word}-photos", seed=len(kind)),
            "path/to/save/lora": folder / kind,
            "<rare_token>": word,
            "<class_word>": kind,
        }
        assert run(SD_TRAINING, typed(TRAIN_SD, replaced)) == 0
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a script that must fail with exit code 2 and one sentence on a line; returns that line."""

    def call(script: Script, *flags: str) -> str:
        capsys.readouterr()
        assert run(script, flags) == 2
        said = capsys.readouterr().err.splitlines()
        lines = [line for line in said if line.startswith("Error: ")]
        assert lines == said[-1:], said
        return lines[0].removeprefix("Error: ")

    return call


def draw(base: Path, *flags: str) -> int:
    return run(INFERENCE, [f"--pretrained_model_name_or_path={base}", "--num_inference_steps=2", *flags])


def needed(script: Script, **values: str) -> list[str]:
    """The flags that a script cannot do without, and further ones."""
    flags = {flag.name: "x" for flag in script.flags if flag.needed}
    if script is not INFERENCE:
        flags |= {"rare_word": "xlo", "class_word": "dog"}
    if script is SD_TRAINING:
        flags["use_lora"] = "true"
    return [f"--{name}={value}" for name, value in (flags | values).items()]


def test_the_sd_command_writes_one_file_that_says_what_the_paper_does(trained: Path):
    for kind, word in (("dog", "xlo"), ("cat", "szn")):
        (file,) = [path for path in (trained / kind).iterdir() if path.is_file()]
        assert file.name == "pytorch_lora_weights.safetensors"
        card = load_adapter(file).card
        assert (card.rare_word, card.class_word, card.phrase) == (word, kind, f"a photo of {rare_word} {class_word}")
        assert (card.rank, card.scale, card.targets) == (8, 4.0, "attention")
        assert [card.settings[name] for name in ("token_mask", "alignment_loss", "flip")] == [True, "l1", False]


def test_the_inference_command_draws_two_adapters_for_the_seeds_from_0_on(trained: Path, base: Path, here: Path):
    replaced = {
        "stabilityai/stable-diffusion-v1-5": base,
        "path/to/lora1.safetensors": trained / "dog",
        "path/to/lora2.safetensors": trained / "cat" / "pytorch_lora_weights.safetensors",
    }
    assert run(INFERENCE, typed(DRAW_TWO, replaced, "--num_inference_steps=2")) == 0
    assert sorted(path.name for path in (here / "output").iterdir()) == [f"output_image_{n}.png" for n in range(4)]
    origin = read_origin(here / "output" / "output_image_3.png")
    assert (origin.seed, origin.settings.context, len(origin.adapters)) == (3, "prompt", 2)


def test_the_sdxl_command_trains_on_a_cpu_with_one_note_for_the_machine_and_one_for_the_tracker(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("SEED", raising=False)
    monkeypatch.setattr("tara.training.run.trackers.find_spec", lambda _: None)
    tiny_bases.sdxl_pipeline().save_pretrained(here / "xl")
    replaced = {
        "stabilityai/stable-diffusion-xl-base-1.0": here / "xl",
        "path/to/your/images": photo_folder(here / "photos"),
        "path/to/save/lora": here / "out",
    }
    tokens = typed(TRAIN_SDXL, replaced, "--device=cpu")
    assert "--seed=" in tokens
    assert run(SDXL_TRAINING, tokens) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Note: ")]
    assert len(notes) == 2, notes
    assert "fp16" in notes[0]
    assert "8-bit" in notes[0]
    assert "wandb is not installed" in notes[1]
    card = load_adapter(here / "out" / "pytorch_lora_weights.safetensors").card
    assert (card.rare_word, card.class_word, card.scale) == ("<rare_token>", "<class_word>", 1.0)
    assert draw(here / "xl", f"--lora_list={here / 'out'}", "--prompt=A <rare_token> <class_word>.", "--number=1") == 0


@pytest.mark.parametrize(
    ("flags", "on"),
    [
        (["--focus", "true"], True),
        (["--focus=true"], True),
        (["--focus=True", "--seed="], True),
        (["--focus", "--seed=1"], True),
        (["--focus=false"], False),
        (["--seed", "1"], False),
        (["--focus", " "], True),
        (["--focus", "\\"], True),
    ],
)
def test_a_switch_may_be_spelt_in_every_way_that_people_use(flags: list[str], on: bool):
    given = read_flags(SD_TRAINING, [*needed(SD_TRAINING), *flags])
    assert recipe_of(given).settings.token_mask is on


@pytest.mark.parametrize(
    ("script", "flags", "part"),
    [
        (SD_TRAINING, ["--focos"], "no flag --focos. Did you mean '--focus'?"),
        (SD_TRAINING, ["--use_lora=false"], "Only adapters are trained here"),
        (SD_TRAINING, ["--train_text_encoder"], "--train_text_encoder true is refused: the text encoder stays frozen"),
        (SD_TRAINING, ["--lora_bias=all"], "Only none can be given."),
        (SD_TRAINING, ["--lora_dropout=0.1"], "--lora_dropout 0.1 is refused"),
        (SD_TRAINING, ["--num_train_epochs", "5"], "give --max_train_steps"),
        (SD_TRAINING, ["--lora_r=2.5"], "--lora_r = '2.5' is refused"),
        (SD_TRAINING, ["--train_batch_size=0"], "--train_batch_size = '0' is refused"),
        (SD_TRAINING, ["--focus=perhaps"], "--focus = 'perhaps' is refused"),
        (SD_TRAINING, ["--rare_word="], "--rare_word is missing"),
        (SD_TRAINING, ["--seed"], "--seed: expected one argument"),
        (SD_TRAINING, ["--instance_prompt=a", "photo"], "Put quotes"),
        (SD_TRAINING, ["--resume_from_checkpoint=checkpoint-500"], "is not the newest checkpoint"),
        (SD_TRAINING, ["--rank=8", "--lora_r=8"], "--rank and --lora_r are the same setting"),
        (SD_TRAINING, ["--optimizer=SGD"], "Choose AdamW or prodigy"),
        (SD_TRAINING, ["--instance_prompt=a photo of a dog"], "lacks the rare word 'xlo'"),
        (SDXL_TRAINING, ["--lora_r=8"], "no flag --lora_r"),
        (SDXL_TRAINING, ["--with_cross_attn_reg"], "a loss on attention maps, which the paper does not have"),
        (SDXL_TRAINING, ["--push_to_hub", "--hub_model_id=my dog"], "no repository can be called"),
        (INFERENCE, ["--number=0"], "--number is 0"),
        (INFERENCE, ['--lora_list=["a.safetensors", ...]'], "is not a list of names"),
        (INFERENCE, ['--rare_token_list=["a", "b"]'], "has 2 words for 1 adapters"),
        (INFERENCE, ["--lora_list=rex.safetensors"], "no adapter file 'rex.safetensors'"),
        (INFERENCE, ["--lora_list=someone/their-dog"], "`hf download someone/their-dog pytorch_lora_weights.safe"),
    ],
)
def test_mistakes_are_one_sentence_that_names_the_flag(
    script: Script, flags: list[str], part: str, here: Path, refused: Any
):
    photos = {} if script is INFERENCE else {"instance_data_dir": str(photo_folder(here / "photos"))}
    assert part in refused(script, *needed(script, **photos), *flags)
    assert list(here.rglob("*.safetensors")) == []


def test_flags_without_effect_are_one_note(base: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    photos = photo_folder(here / "photos")
    flags = needed(
        SD_TRAINING, pretrained_model_name_or_path=str(base), instance_data_dir=str(photos), output_dir="out"
    )
    more = ["--num_dataloader_workers=1", "--no_tracemalloc", "--lora_dropout=0.0", "--adam_beta1=0.9"]
    assert run(SD_TRAINING, [*flags, *more, "--max_train_steps=1", "--resolution=32"]) == 0
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Note: Without effect")]
    assert "--num_dataloader_workers" in note
    assert "--no_tracemalloc" in note
    assert "--lora_dropout" not in note


def test_the_rate_is_scaled_with_the_launched_processes_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    given = read_flags(SD_TRAINING, needed(SD_TRAINING, scale_lr="true", learning_rate="1e-4", rank="16"))
    settings = recipe_of(given).settings
    assert settings.learning_rate == pytest.approx(4e-4)
    assert settings.rank == 16


def test_flags_reach_the_settings_that_the_table_names():
    values = {
        "scale_lr": "true",
        "train_batch_size": "2",
        "gradient_accumulation_steps": "3",
        "learning_rate": "1e-4",
        "validation_prompt": "a xlo dog on grass",
        "validation_steps": "7",
        "with_prior_preservation": "true",
        "class_data_dir": "class",
        "class_prompt": "a photo of a dog",
        "wandb_project_name": "dogs",
        "lora_alpha": "16",
    }
    settings = recipe_of(read_flags(SD_TRAINING, needed(SD_TRAINING, **values))).settings
    assert settings.learning_rate == pytest.approx(6e-4)
    assert (settings.preview_every, settings.preview_images, settings.preview_prompt) == (
        7,
        4,
        "a xlo dog on grass",
    )
    assert (settings.prior_preservation, settings.class_folder, settings.class_prompt) == (
        True,
        Path("class"),
        "a photo of a dog",
    )
    assert (settings.project, settings.scale, settings.optimizer) == ("dogs", 2.0, "adamw")
    frozen = recipe_of(read_flags(SDXL_TRAINING, [*needed(SDXL_TRAINING), "--freeze_lora_down"])).settings
    assert (frozen.freeze_down, settings.freeze_down, settings.push_to_hub) == (True, False, False)
    prodigy = recipe_of(read_flags(SD_TRAINING, needed(SD_TRAINING, optimizer="Prodigy"))).settings
    assert (prodigy.optimizer, prodigy.peak_learning_rate) == ("prodigy", 1.0)


def test_a_stopped_training_goes_on_from_its_latest_checkpoint(base: Path, here: Path, refused: Any):
    photos = str(photo_folder(here / "photos"))
    flags = needed(SD_TRAINING, pretrained_model_name_or_path=str(base), instance_data_dir=photos, output_dir="out")
    flags += ["--max_train_steps=2", "--resolution=32", "--checkpointing_steps=1"]
    assert run(SD_TRAINING, flags) == 0
    (here / "out" / "pytorch_lora_weights.run" / "checkpoints" / "step-000002.safetensors").unlink()
    assert "unfinished training" in refused(SD_TRAINING, *flags)
    assert run(SD_TRAINING, [*flags, "--resume_from_checkpoint=latest"]) == 0
    assert load_adapter("out/pytorch_lora_weights.safetensors").card.settings["trained_steps"] == 2


def test_a_rare_word_that_the_file_does_not_know_is_refused(trained: Path, base: Path, here: Path, refused: Any):
    flags = [f"--pretrained_model_name_or_path={base}", f"--lora_list={trained / 'dog'}", "--prompt=a xlo dog"]
    said = refused(INFERENCE, *flags, '--rare_token_list=["abc"]')
    assert "says 'abc', but dog listens to 'xlo'" in said
    assert list(here.rglob("*.png")) == []


def test_a_file_without_a_card_gets_its_words_from_the_list_and_the_prompt(
    trained: Path, here: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []

    def loaded(specs: list[str]) -> tuple[tuple[()], tuple[()]]:
        asked.extend(specs)
        return (), ()

    monkeypatch.setattr("tara.cli.generate.loaded", loaded)
    save_file({"weight": torch.zeros(1)}, here / "plain.safetensors")
    lists = {
        "lora_list": json.dumps(["plain.safetensors", "plain.safetensors:0.5", str(trained / "cat")]),
        "rare_token_list": '["xlo", "tok", "szn"]',
    }
    order_of(read_flags(INFERENCE, needed(INFERENCE, **lists, prompt="an xlo dog, a tok, and a szn cat")))
    assert asked == [
        "plain.safetensors:rare_word=xlo,class_word=dog",
        "plain.safetensors:0.5,rare_word=tok",
        str(trained / "cat"),
    ]


def test_an_adapter_on_the_hub_is_fetched_and_keeps_its_options(
    trained: Path, here: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []

    def fetched(repository: str, file: str, revision: str | None = None) -> str:
        asked.append(f"{repository}/{file}")
        return str(trained / "dog" / file)

    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda _: ["pytorch_lora_weights.safetensors"])
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetched)
    lists = {"lora_list": '["someone/rex:0.5"]', "rare_token_list": '["xlo"]'}
    (active,) = order_of(read_flags(INFERENCE, needed(INFERENCE, **lists, prompt="an xlo dog"))).active_adapters
    assert (active.name, active.weight, active.rare_word) == ("someone/rex", 0.5, "xlo")
    assert set(asked) == {"someone/rex/pytorch_lora_weights.safetensors"}


def test_the_hub_flags_upload_under_the_output_folders_name(
    base: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    asked: list[tuple[Path, str, str | None]] = []

    def uploaded(folder: Path, repository: str) -> str:
        asked.append((folder, repository, os.environ.get("HF_TOKEN")))
        return "https://hub/me/my-dog"

    monkeypatch.setattr("tara.training.run.run.upload", uploaded)
    monkeypatch.setattr("tara.training.run.run.with_owner", lambda repository: f"me/{repository}")
    monkeypatch.setenv("HF_TOKEN", "another")
    photos = str(photo_folder(here / "photos"))
    flags = needed(SD_TRAINING, pretrained_model_name_or_path=str(base), instance_data_dir=photos, output_dir="my dog")
    more = ["--max_train_steps=1", "--resolution=32", "--push_to_hub", "--hub_token=hf_mine"]
    assert run(SD_TRAINING, [*flags, *more]) == 0
    assert asked == [(Path("my dog/pytorch_lora_weights.run/hub"), "me/my-dog", "hf_mine")]
    assert "On the hub: https://hub/me/my-dog" in capsys.readouterr().out
    assert [path.name for path in (here / "my dog").iterdir() if path.is_file()] == ["pytorch_lora_weights.safetensors"]
    assert not any(b"hf_mine" in path.read_bytes() for path in (here / "my dog").rglob("*.*") if path.is_file())


def test_six_pictures_are_drawn_unless_told_otherwise_and_options_follow_an_adapter(
    trained: Path, base: Path, here: Path
):
    assert draw(base, f'--lora_list=["{trained / "dog"}:0.5"]', "--prompt=a xlo dog", "--output_folder=more") == 0
    assert len(list((here / "more").iterdir())) == 6


def test_the_tables_name_settings_that_exist_and_no_flag_twice():
    known = {*TrainSettings.model_fields, *ConceptSettings.model_fields, *PictureSettings.model_fields, "device", ""}
    for script in SCRIPTS:
        names = [flag.name for flag in script.flags]
        assert len(set(names)) == len(names)
        assert {flag.setting for flag in script.flags} <= known


def test_the_page_is_made_of_the_tables_and_the_help_shows_every_flag():
    assert (ROOT / "docs" / "seed-commands.md").read_text(encoding="utf-8") == markdown()
    for script in SCRIPTS:
        shown = script.help()
        assert all(f"--{flag.name}" in shown for flag in script.flags)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.file)
def test_a_script_is_executable_and_short_and_its_help_does_not_wait_for_torch(script: Script, here: Path):
    file = ROOT / script.file
    text = file.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env python3\n")
    assert os.access(file, os.X_OK)
    assert len(text.splitlines()) < 80
    code = (
        "import runpy, sys, time\n"
        f"sys.argv = [{script.file!r}, '--help']\n"
        f"try: runpy.run_path({str(file)!r}, run_name='__main__')\n"
        "except SystemExit as end: print(end.code, time.process_time(), 'torch' in sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=here)
    ended, seconds, torch_imported = ran.stderr.split()
    assert (ended, torch_imported) == ("0", "False")
    assert float(seconds) < 0.4
    assert script.file in ran.stdout


def test_an_unknown_value_of_a_setting_names_the_flag():
    with pytest.raises(TaraError, match="--mixed_precision = 'fp8' is refused"):
        recipe_of(read_flags(SD_TRAINING, needed(SD_TRAINING, mixed_precision="fp8")))
