"""The published scripts' commands, as they are typed, on a tiny base of random weights."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import tiny_bases
from published_commands import (
    GENERATE_TWO,
    INFERENCE_ADDED,
    INFERENCE_PARSER,
    SD_ADDED,
    SD_PARSER,
    SDXL_ADDED,
    SDXL_PARSER,
    TRAIN_SD,
    TRAIN_SDXL,
    typed,
)
from tara.adapters.adapter import load_adapter
from tara.cli.published import (
    INFERENCE,
    SCRIPTS,
    SD_TRAINING,
    SDXL_TRAINING,
    Script,
    markdown,
    recipe_of,
    request_of,
    run,
)
from tara.errors import TaraError
from tara.inference.provenance import read_provenance
from tara.training.settings import Recipe, TrainSettings
from training_fixtures import photo_folder

ROOT = Path(__file__).parents[2]
WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """The output folders ``dog`` and ``cat`` of the SD script."""
    folder = tmp_path_factory.mktemp("trained")
    for kind, word in (("dog", "xlo"), ("cat", "szn")):
        replaced = {
            "stabilityai/stable-diffusion-v1-5": base,
            "path/to/your/images": photo_folder(folder / f"{kind}-photos", seed=len(kind)),
            "path/to/save/lora": folder / kind,
            "<rare_token>": word,
            "<class_word>": kind,
        }
        assert run(SD_TRAINING, typed(TRAIN_SD, replaced)) == 0
    return folder


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """What the commands would train; nothing is trained."""
    asked: list[Recipe] = []
    monkeypatch.setattr("tara.cli.published.train_with_progress", lambda recipe, **_: asked.append(recipe))
    return asked


@pytest.fixture
def notes(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Runs a script that succeeds; returns its notes."""

    def call(script: Script, *flags: str) -> list[str]:
        capsys.readouterr()
        assert run(script, flags) == 0
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("Note: ")]

    return call


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


def required(script: Script, **values: str) -> list[str]:
    """The flags that a script requires, and further ones."""
    given = {"pretrained_model_name_or_path": "sd15", "instance_data_dir": ".", "output_dir": "out"}
    given |= {"rare_word": "xlo", "class_word": "dog", "use_lora": "true", "lora_list": "a/b", "prompt": "an xlo dog"}
    needed = {flag.name: given[flag.name] for flag in script.flags if "!" in flag.marks}
    return [f"--{name}={value}" for name, value in (needed | values).items()]


def settings_of(script: Script, **values: str) -> TrainSettings:
    return recipe_of(script.parse(required(script, **values))).settings


def test_the_sd_command_writes_one_file_that_says_what_the_paper_does(trained: Path):
    for kind, word in (("dog", "xlo"), ("cat", "szn")):
        (file,) = [path for path in (trained / kind).iterdir() if path.is_file()]
        assert file.name == WEIGHTS
        card = load_adapter(file).card
        assert (card.rare_word, card.class_word, card.phrase) == (word, kind, f"a photo of {word} {kind}")
        assert (card.rank, card.settings["alpha"], card.targets) == (8, 32, "attention")
        assert [card.settings[name] for name in ("token_mask", "alignment_loss", "flip")] == [True, "l1", False]


def test_the_inference_command_composes_two_adapters_for_the_seeds_from_0_on(trained: Path, base: Path, here: Path):
    replaced = {
        "stabilityai/stable-diffusion-v1-5": base,
        "path/to/lora1.safetensors": trained / "dog",
        "path/to/lora2.safetensors": trained / "cat" / WEIGHTS,
        "--number=4": "--number=2",
    }
    assert run(INFERENCE, typed(GENERATE_TWO, replaced, "--num_inference_steps=2")) == 0
    assert sorted(path.name for path in (here / "output").iterdir()) == ["output_image_0.png", "output_image_1.png"]
    origin = read_provenance(here / "output" / "output_image_1.png")
    assert (origin.seed, origin.settings.context, len(origin.adapters)) == (1, "prompt", 2)


def test_the_sdxl_command_trains_on_a_cpu_with_notes_about_what_is_missing(
    here: Path, notes: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("SEED", raising=False)
    monkeypatch.setattr("tara.training.run.metrics.find_spec", lambda _: None)
    tiny_bases.sdxl_pipeline().save_pretrained(here / "xl")
    replaced = {
        "stabilityai/stable-diffusion-xl-base-1.0": here / "xl",
        "path/to/your/images": photo_folder(here / "photos"),
        "path/to/save/lora": here / "out",
    }
    tokens = typed(TRAIN_SDXL, replaced, "--device=cpu")
    assert "--seed=" in tokens
    told = notes(SDXL_TRAINING, *tokens)
    assert len(told) == 3, told
    for part, note in zip(("fp16 needs CUDA", "8bit_adam needs CUDA", "wandb is not installed"), told, strict=True):
        assert part in note
    card = load_adapter(here / "out" / WEIGHTS).card
    assert (card.rare_word, card.class_word, card.scale) == ("<rare_token>", "<class_word>", 1.0)
    flags = [f"--lora_list={here / 'out'}", "--prompt=A <rare_token> <class_word>.", "--number=1"]
    assert run(INFERENCE, [f"--pretrained_model_name_or_path={here / 'xl'}", "--num_inference_steps=1", *flags]) == 0


@pytest.mark.parametrize(
    ("script", "parser", "added"),
    [
        (SD_TRAINING, SD_PARSER, SD_ADDED),
        (SDXL_TRAINING, SDXL_PARSER, SDXL_ADDED),
        (INFERENCE, INFERENCE_PARSER, INFERENCE_ADDED),
    ],
)
def test_the_flags_are_those_of_the_published_parsers_and_a_handful(script: Script, parser: str, added: set[str]):
    names = [flag.name for flag in script.flags]
    assert len(set(names)) == len(names)
    assert {flag.name for flag in script.flags if "+" in flag.marks} == added
    assert set(names) == {*parser.split(), *added}


@pytest.mark.parametrize(
    ("flags", "on"),
    [
        (["--focus", "true"], True),
        (["--focus=true"], True),
        (["--focus=True", "--seed="], True),
        (["--focus", "--seed=1"], True),
        (["--foc=yes"], True),
        (["--focus=false"], False),
        (["--focus="], False),
        (["--seed", "1"], False),
        (["--focus", " "], True),
        (["--focus", "\\"], True),
    ],
)
def test_a_switch_may_be_spelt_in_every_way_that_people_use(flags: list[str], on: bool):
    assert recipe_of(SD_TRAINING.parse([*required(SD_TRAINING), *flags])).settings.token_mask is on


@pytest.mark.parametrize(
    ("script", "flags", "part"),
    [
        (
            SD_TRAINING,
            ["--focos"],
            "has no flag --focos. Did you mean '--focus'? See `python train_dreambooth_tara_sd.py",
        ),
        (SD_TRAINING, ["--lr=1e-4"], "ambiguous option: --lr"),
        (SD_TRAINING, ["--use_lora=false"], "--use_lora: 'false' is refused: only adapters are trained; give true"),
        (
            SD_TRAINING,
            ["--train_text_encoder"],
            "--train_text_encoder: 'true' is refused: text encoders are not trained",
        ),
        (SD_TRAINING, ["--lora_bias=all"], "give none"),
        (SD_TRAINING, ["--lora_dropout=0.1"], "--lora_dropout: '0.1' is refused"),
        (SD_TRAINING, ["--num_train_epochs", "5"], "counted in steps, --max_train_steps; leave it out"),
        (SD_TRAINING, ["--lora_r=2.5"], "--lora_r = '2.5' is refused"),
        (SD_TRAINING, ["--train_batch_size=0"], "--train_batch_size = '0' is refused"),
        (SD_TRAINING, ["--mixed_precision=fp8"], "--mixed_precision = 'fp8' is refused"),
        (SD_TRAINING, ["--focus=perhaps"], "--focus: 'perhaps' is refused; give true or false"),
        (SD_TRAINING, ["--rare_word="], "--rare_word: '' is empty; give a value"),
        (SD_TRAINING, ["--seed"], "--seed: expected one argument"),
        (SD_TRAINING, ["--instance_prompt=a", "photo"], "A value with spaces needs quotes"),
        (
            SD_TRAINING,
            ["--instance_prompt=a photo of a dog"],
            "--instance_prompt 'a photo of a dog' lacks the rare word",
        ),
        (SD_TRAINING, ["--validation_prompt=a dog"], "--validation_prompt 'a dog' lacks the rare word 'xlo'"),
        (SD_TRAINING, ["--instance_data_dir=path/to/images"], "--instance_data_dir: 'path/to/images' does not exist"),
        (SD_TRAINING, ["--pretrained_model=./sd.safetensors"], "model_name_or_path: './sd.safetensors' does not exist"),
        (SD_TRAINING, ["--resume_from_checkpoint=checkpoint-500"], "--resume_from_checkpoint: 'checkpoint-500' is"),
        (
            SD_TRAINING,
            ["--lr_scheduler=cosine", "--lr_warmup_steps=500", "--max_train_steps=2"],
            "--lr_warmup_steps is 500, but --max_train_steps is only 2; give fewer warm-up steps. See",
        ),
        (SDXL_TRAINING, ["--lora_r=8"], "no flag --lora_r"),
        (SDXL_TRAINING, ["--crops_coords_top_left_h=8"], "the size conditioning describes whole photos; give 0"),
        (SDXL_TRAINING, ["--optimizer=SGD"], "--optimizer = 'sgd' is refused: input should be 'adamw'"),
        (SDXL_TRAINING, ["--with_cross_attn_reg"], "the paper's loss is --with_align_loss; give false"),
        (
            SDXL_TRAINING,
            ["--push_to_hub", "--hub_model_id=my dog"],
            "--hub_model_id is 'my dog', which is not a valid repository name",
        ),
        (INFERENCE, ["--number=0"], "--number 0 is refused"),
        (INFERENCE, ["--num=0"], "--number 0 is refused"),
        (INFERENCE, ['--lora_list=["a.safetensors", ...]'], "is not a list of names"),
        (INFERENCE, ['--rare_token_list=["a", "b"]'], "has 2 words for 1 adapters"),
        (INFERENCE, ["--lora_list=path/to/lora.safetensors"], "--lora_list: 'path/to/lora.safetensors' does not exist"),
        (INFERENCE, ["--lora_list=someone/their-dog"], "`hf download someone/their-dog pytorch_lora_weights.safe"),
        (INFERENCE, ["--height=63"], "--height = '63' is refused"),
    ],
)
def test_mistakes_are_one_sentence_that_names_the_flag(
    script: Script, flags: list[str], part: str, here: Path, refused: Any
):
    assert part in refused(script, *required(script), *flags)
    assert not (here / "out").exists()


def test_flags_without_effect_and_all_trackers_are_notes(recipes: list[Recipe], notes: Any, here: Path):
    more = ["--num_dataloader_workers=1", "--no_tracemalloc", "--lora_dropout=0", "--adam_beta1=0.9", "--report_to=all"]
    told = notes(SD_TRAINING, *required(SD_TRAINING), *more)
    assert [note.split()[1] for note in told] == ["--num_dataloader_workers", "--no_tracemalloc", "--report_to"]
    assert recipes[0].settings.report_to in told[-1]


def test_a_constant_rate_has_no_warm_up_as_in_the_published_code(recipes: list[Recipe], notes: Any, here: Path):
    (note,) = notes(SD_TRAINING, *required(SD_TRAINING), "--lr_warmup_steps=500", "--max_train_steps=2")
    assert "--lr_warmup_steps has no effect" in note
    assert recipes[0].settings.lr_warmup_steps == 0
    warmed = settings_of(SD_TRAINING, lr_scheduler="constant_with_warmup", lr_warmup_steps="500")
    assert warmed.lr_warmup_steps == 500


def test_the_published_forms_are_the_commands_own_and_not_the_defaults_of_tara_train():
    ours, sd, sdxl = TrainSettings(base="sd15"), settings_of(SD_TRAINING), settings_of(SDXL_TRAINING)
    names = ("init_lora_weights", "alignment_subwords", "size_conditioning", "weight_decay")
    assert [getattr(ours, name) for name in names] == ["uniform", "mean", "crop", 1e-2]
    assert [getattr(sd, name) for name in names] == ["gaussian", "each", "crop", 1e-2]
    assert [getattr(sdxl, name) for name in names] == ["gaussian", "each", "resolution", 1e-4]


def test_the_rate_is_scaled_with_the_launched_processes_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert settings_of(SD_TRAINING, scale_lr="true", learning_rate="1e-4").learning_rate == pytest.approx(4e-4)


def test_flags_reach_the_settings_that_the_table_names():
    settings = settings_of(
        SD_TRAINING,
        scale_lr="true",
        train_batch_size="2",
        gradient_accumulation_steps="3",
        learning_rate="1e-4",
        validation_prompt="a xlo dog on grass",
        validation_steps="7",
        with_prior_preservation="true",
        class_data_dir="class",
        class_prompt="a photo of a dog",
        wandb_project_name="dogs",
        lora_alpha="16",
    )
    assert settings.learning_rate == pytest.approx(6e-4)
    assert (settings.preview_every, settings.preview_images) == (7, 4)
    assert settings.preview_prompt == "a xlo dog on grass"
    assert (settings.prior_preservation, settings.class_folder) == (True, Path("class"))
    assert settings.class_prompt == "a photo of a dog"
    assert (settings.project, settings.scale, settings.optimizer) == ("dogs", 2.0, "adamw")
    assert settings_of(SDXL_TRAINING, freeze_lora_down="true").freeze_down
    plain = settings_of(SD_TRAINING)
    assert (plain.freeze_down, plain.push_to_hub, plain.preview_every, plain.token_mask) == (False, False, 0, False)
    prodigy = settings_of(SDXL_TRAINING, optimizer="Prodigy")
    assert (prodigy.optimizer, prodigy.peak_learning_rate) == ("prodigy", 1.0)


def test_a_stopped_training_goes_on_from_its_latest_checkpoint(base: Path, here: Path, refused: Any):
    photos = str(photo_folder(here / "photos"))
    flags = required(SD_TRAINING, pretrained_model_name_or_path=str(base), instance_data_dir=photos)
    flags += ["--max_train_steps=2", "--resolution=32", "--checkpointing_steps=1"]
    assert run(SD_TRAINING, flags) == 0
    (here / "out" / "pytorch_lora_weights.run" / "checkpoints" / "step-000002.safetensors").unlink()
    assert "unfinished training" in refused(SD_TRAINING, *flags)
    assert run(SD_TRAINING, [*flags, "--resume_from_checkpoint=latest"]) == 0
    assert load_adapter(f"out/{WEIGHTS}").card.settings["trained_steps"] == 2


def test_the_hub_flags_upload_under_the_output_folders_name_and_the_token_stays_out_of_the_run(
    recipes: list[Recipe], notes: Any, here: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", "another")
    flags = required(SD_TRAINING, output_dir="my dog", hub_token="hf_mine")
    assert notes(SD_TRAINING, *flags, "--push_to_hub") == []
    (recipe,) = recipes
    assert (recipe.settings.push_to_hub, recipe.settings.hub_model_id) == (True, "my-dog")
    assert os.environ["HF_TOKEN"] == "hf_mine"
    assert "hf_mine" not in recipe.model_dump_json()


def test_a_rare_word_that_the_file_does_not_know_is_refused(trained: Path, refused: Any, here: Path):
    flags = required(INFERENCE, lora_list=str(trained / "dog"), prompt="a xlo dog")
    said = refused(INFERENCE, *flags, '--rare_token_list=["abc"]')
    assert "--rare_token_list says 'abc', but dog acts on 'xlo'" in said
    assert not (here / "output").exists()


def test_a_file_without_a_card_gets_its_words_from_the_list_and_the_prompt(trained: Path, here: Path):
    save_file(load_file(trained / "dog" / WEIGHTS), here / "plain.safetensors")
    lists = {
        "lora_list": json.dumps(["plain.safetensors", "plain.safetensors:0.5", str(trained / "cat")]),
        "rare_token_list": '["xlo", "tok", "szn"]',
    }
    asked = request_of(INFERENCE.parse(required(INFERENCE, **lists, prompt="an xlo dog, a tok, and a szn cat")))
    assert [file.given for file in asked.adapters] == [
        "plain.safetensors:rare_word=xlo,class_word=dog",
        "plain.safetensors:0.5,rare_word=tok",
        str(trained / "cat"),
    ]
    assert [use.rare_word for use in asked.request.adapters] == ["xlo", "tok", "szn"]


def test_an_adapter_on_the_hub_is_fetched_and_keeps_its_options(
    trained: Path, here: Path, monkeypatch: pytest.MonkeyPatch
):
    fetches: list[str] = []

    def fetched(repository: str, file: str, revision: str | None = None) -> str:
        fetches.append(f"{repository}/{file}")
        return str(trained / "dog" / file)

    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda _: [WEIGHTS])
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetched)
    lists = {"lora_list": '["someone/rex:0.5"]', "rare_token_list": '["xlo"]'}
    asked = request_of(INFERENCE.parse(required(INFERENCE, **lists)))
    (use,) = asked.request.adapters
    assert (use.name, use.weight, use.rare_word) == ("someone/rex", 0.5, "xlo")
    assert set(fetches) == {f"someone/rex/{WEIGHTS}"}
    assert asked.request.seeds == (0, 1, 2, 3, 4, 5)
    assert asked.request.settings.steps == 50


def test_every_setting_in_the_tables_exists_and_the_page_shows_every_flag():
    assert (ROOT / "docs" / "seed-commands.md").read_text(encoding="utf-8") == markdown()
    for script in SCRIPTS:
        known = {name for model in script.models for name in model.model_fields}
        flags = script.flags
        assert {flag.setting for flag in flags} <= {*known, ""}
        shown = markdown().partition(f"## `{script.file}`")[2].partition("\n## ")[0]
        assert all(f"--{flag.name}" in shown for flag in flags)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.file)
def test_a_script_is_executable_and_short(script: Script):
    text = (ROOT / script.file).read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env python3\n")
    assert os.access(ROOT / script.file, os.X_OK)
    assert len(text.splitlines()) < 20


def test_help_ends_with_0_and_does_not_wait_for_torch(here: Path):
    file = ROOT / SDXL_TRAINING.file
    code = (
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(ROOT / 'src')!r})\n"
        f"sys.argv = [{file.name!r}, '--help']\n"
        f"try: runpy.run_path({str(file)!r}, run_name='__main__')\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=here)
    assert ran.stderr.split() == ["0", "False"]
    assert file.name in ran.stdout
    assert "--align_loss_weight" in ran.stdout


def test_a_missing_required_flag_is_named():
    with pytest.raises(TaraError, match="required: --use_lora"):
        SD_TRAINING.parse([flag for flag in required(SD_TRAINING) if "use_lora" not in flag])
