"""The command line end to end, on a tiny base of random weights."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

import foreign_files
import tiny_adapters
import tiny_bases
from cli_commands import TINY, generate
from tara.adapters.adapter import load_adapter
from tara.cli import COMMANDS, main
from tara.families.loading import load_base
from tara.inference.provenance import read_provenance
from tara.training.concept_settings import ConceptSettings
from tara.training.settings import TrainSettings

ONE = torch.ones(1)


def test_help_needs_no_torch(here: Path):
    # what that is for, a quick answer, is timed in benchmarks/preparation_speed.py
    code = "import sys\nfrom tara.cli import main; main(['--help'])\nprint('torch' in sys.modules, file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=here)
    assert run.stderr.strip() == "False"
    assert all(name in run.stdout for name in COMMANDS)


def test_a_reader_that_has_seen_enough_ends_a_command_quietly(here: Path):
    command = [sys.executable, "-m", "tara", "generate", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=here) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()  # before anything is written, as `head -0` does
        assert run.stderr.read() == ""


def test_folders_may_have_any_name(trained: Path, base: Path, here: Path):
    """Every command that writes files, one after another, as a user would run them."""
    place = here / "it's \"Ünder\" 犬 🐕 'a;b' $HOME #%20 {x}"
    shutil.copytree(trained / "dog", place / "phötos of [rex]")
    shutil.copytree(base, place / "b a s e")
    out, images = place / "réx's.safetensors", place / 'generated "here"'
    flags = ["--rare-word", "xlo", "--class-word", "dog", "--base", str(place / "b a s e")]
    assert main(["train", "--images", str(place / "phötos of [rex]"), *flags, "--out", str(out), *TINY]) == 0
    shutil.rmtree(place / "réx's.run")
    assert (
        main(["train", "--images", str(place / "phötos of [rex]"), *flags, "--out", str(out), "--overwrite", *TINY])
        == 0
    )
    assert main(["train", str(place / "réx's.run"), "--resume", "--steps", "3"]) == 0
    common = ["-a", str(out), "--base", str(place / "b a s e"), "--device", "cpu", "--steps", "2"]
    assert main(["generate", "a xlo dog", *common, "--seeds", "0-1", "--out", str(images)]) == 0
    found = sorted(images.glob("*.png"))
    assert len(found) >= 2
    assert read_provenance(found[0]) is not None
    assert main(["compare", "a xlo dog", *common, "--seeds", "0", "--out", str(place / "c ö m")]) == 0
    assert main(["convert", str(out), "--to", "kohya", "--out", str(place / "ko hyä.safetensors")]) == 0
    assert load_adapter(place / "ko hyä.safetensors").card.rank == 2


def test_every_setting_is_a_flag_with_its_description(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "300")  # nothing is folded
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for name in {*TrainSettings.model_fields, *ConceptSettings.model_fields}:
        assert f"--{name.replace('_', '-')}" in shown
    assert "LoRA rank [default: 8]" in shown


def test_training_writes_an_adapter_and_a_run_folder(trained: Path, base: Path):
    card = load_adapter(trained / "rex.safetensors").card
    assert (card.rare_word, card.class_word, card.rank, card.base) == ("xlo", "dog", 2, base.name)
    assert {"settings.json", "versions.json", "metrics.jsonl", "loss.png"} <= {
        path.name for path in (trained / "rex.run").iterdir()
    }


def test_an_adapters_header_is_read_by_other_tools_and_tells_no_path_of_the_machine(trained: Path, base: Path):
    with safe_open(trained / "rex.safetensors", framework="pt") as file:
        header = file.metadata()
    wanted = {
        "modelspec.title": "xlo dog",
        "modelspec.trigger_phrase": "xlo dog",
        "modelspec.resolution": "32x32",
        "ss_network_dim": "2",
        "ss_sd_model_name": base.name,
        "ss_unet_lr": "0.0001",
        "ss_steps": "2",
    }
    assert wanted.items() <= header.items()
    folders = {str(folder) for path in (base, trained) for folder in (path, *path.parents) if folder != Path("/")}
    assert [key for key, value in header.items() if any(folder in value for folder in folders)] == []


def test_flags_and_a_recipe_train_the_same_adapter(trained: Path, base: Path, here: Path):
    (here / "two.toml").write_text(
        f"[settings]\nbase = '{base}'\nsteps = 99\nrank = 2\n"
        f"[[concept]]\nimages = '{trained / 'dog'}'\nrare_word = 'xlo'\nclass_word = 'dog'\nout = 'rex.safetensors'\n"
        f"[[concept]]\nimages = '{trained / 'cat'}'\nrare_word = 'szn'\nclass_word = 'cat'\nout = 'tom.safetensors'\n"
    )
    assert main(["train", "two.toml", "--steps", "2", "--device", "cpu"]) == 0
    for name in ("rex", "tom"):
        alone, together = (load_adapter(folder / f"{name}.safetensors") for folder in (trained, here))
        assert alone.card.settings["steps"] == together.card.settings["steps"] == 2
        for layer, low_rank in alone.layers.items():
            difference = (low_rank.dense() - together.layers[layer].dense()).abs().max()
            assert difference <= 1e-4 * low_rank.dense().abs().max()


def test_inspect_prints_what_the_file_says(trained: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(trained / "rex.safetensors"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {"format", "rare_word", "class_word", "family", "rank", "scale", "targets", "settings"} <= {*facts}
    assert (facts["rare_word"], facts["scale"], facts["instance_prompt"]) == ("xlo", 1.0, "a photo of a xlo dog")
    assert main(["inspect", str(trained / "rex.safetensors")]) == 0
    assert "a photo of a xlo dog" in capsys.readouterr().out


def test_inspect_tells_whose_file_it_is_for_every_family(here: Path, capsys: pytest.CaptureFixture[str]):
    header = {"software": json.dumps({"name": "ai-toolkit", "version": "0.7"}), "training_info": '{"step": 500}'}
    header |= {"ss_tag_frequency": json.dumps({"1_a": {"dog": 2, "p3x": 9}}), "ss_output_name": "rex"}
    flux = {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": ONE}
    path = foreign_files.saved(here / "flux.safetensors", flux, header)
    assert main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["family"], facts["program"], facts["training"]) == ("FLUX", "ai-toolkit 0.7", {"steps": "500"})
    assert facts["trigger_words"] == {"ss_tag_frequency": "p3x, dog", "ss_output_name": "rex"}
    assert main(["inspect", str(path)]) == 0
    assert "none with tara" in capsys.readouterr().out


def test_inspect_tells_alpha_as_a_range_where_modules_differ(here: Path, capsys: pytest.CaptureFixture[str]):
    deltas = foreign_files.random_deltas(tiny_bases.sd_pipeline().unet, foreign_files.ATTENTIONS, alphas=(0.5, 3.0))
    path = foreign_files.saved(here / "pixel.safetensors", foreign_files.kohya(deltas))
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["alphas"] == [0.5, 3.0]
    assert main(["inspect", str(path)]) == 0
    assert re.search(r"alpha +0\.5 to 3\b", capsys.readouterr().out)


def test_inspect_warns_of_a_file_that_changes_nothing(here: Path, capsys: pytest.CaptureFixture[str]):
    name = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{name}.lora_down.weight": ONE[None], f"{name}.lora_up.weight": ONE[None], f"{name}.alpha": 0 * ONE[0]}
    assert main(["inspect", str(foreign_files.saved(here / "z.safetensors", tensors))]) == 0
    assert "changes nothing: its alpha is 0" in capsys.readouterr().err


@pytest.fixture
def foreign(here: Path) -> Path:
    """A kohya file that fits the tiny base, with layers of two ranks and a global part."""
    deltas = foreign_files.random_deltas(
        tiny_bases.sd_pipeline().unet, foreign_files.TRANSFORMERS, ranks=(4, 2), alphas=(1.0,)
    )
    return foreign_files.saved(here / "pixel.safetensors", foreign_files.kohya(deltas))


@pytest.mark.parametrize(
    ("card", "use"),
    [
        ({"settings": {"token_mask": True}}, "with 'xlo dog' in the prompt; it acts on the rare word's tokens"),
        (
            {},
            "it acts on the rare word's tokens (composer tara) and was trained as a plain LoRA",
        ),
        (
            {"class_word": "style", "is_style": True},
            "with 'xlo style' in the prompt; as a style it acts on the whole image",
        ),
        ({"targets": tiny_adapters.ATTENTION}, "with others in its subject's region (composer regions)"),
        ({"method": "DoRA"}, "--composer sum, or --composer regions, which reduces its rank: it contains DoRA"),
    ],
)
def test_inspect_says_how_each_kind_of_adapter_is_used(
    card: dict[str, Any], use: str, base: Path, here: Path, capsys: pytest.CaptureFixture[str]
):
    adapter = tiny_adapters.random_adapter(load_base(base, device="cpu"), **card)
    path = adapter.save(here / "rex.safetensors")
    assert main(["inspect", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["use"]
    assert said.startswith("-a rex.safetensors")
    assert use in said


@pytest.mark.parametrize(
    ("layers", "use"),
    [
        (r"attn2\.to_(k|v)$", "with 'xlo dog' in the prompt (for a style: class_word=style)"),
        (r"attn2\.to_(k|v)$", "it acts on the rare word's tokens (composer tara) and was trained as a plain LoRA"),
        (foreign_files.TRANSFORMERS, "or -a pixel.safetensors --composer sum, which needs no words; alone it acts on"),
    ],
)
def test_inspect_says_how_a_file_without_words_is_used(
    layers: str, use: str, here: Path, capsys: pytest.CaptureFixture[str]
):
    deltas = foreign_files.random_deltas(tiny_bases.sd_pipeline().unet, layers)
    path = foreign_files.saved(here / "pixel.safetensors", foreign_files.kohya(deltas))
    assert main(["inspect", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["use"]
    assert said.startswith("-a pixel.safetensors:rare_word=xlo,class_word=dog")
    assert use in said


def test_inspect_shows_what_is_in_a_file_without_a_card(
    foreign: Path, capsys: pytest.CaptureFixture[str], refused: Any
):
    assert main(["inspect", str(foreign), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    wanted = {"source": "kohya", "rare_word": "", "family": "", "ranks": [2, 4], "scales": [0.25, 0.5]}
    assert wanted.items() <= facts.items()
    assert facts["global_part"].startswith("yes")
    assert main(["inspect", str(foreign)]) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("kohya", "2 to 4", "0.25 to 0.5", "global part", "layers"))
    assert "rare word" not in shown
    assert "which tara does not know" in refused("inspect", foreign_files.saved(Path("a.safetensors"), {"a.b": ONE}))


def test_a_lora_without_a_card_is_generated_by_the_word_that_it_is_given(foreign: Path, base: Path, refused: Any):
    flags = ["--base", str(base), "--device", "cpu", "--steps", "1", "--seeds", "0"]
    images = []
    for part in ("global=0", "global=0.6"):
        assert main(["generate", "a xlo dog", *flags, "-a", f"{foreign}:rare_word=xlo,class_word=dog,{part}"]) == 0
        images.append(max(Path("out").glob("*-seed0.png")).read_bytes())
    assert images[0] != images[1]
    said = refused("generate", "a xlo dog", *flags, "-a", foreign)
    assert f"{foreign.name}:rare_word=xlo,class_word=dog" in said
    assert main(["generate", "a dog", *flags, "-a", str(foreign), "--composer", "sum"]) == 0  # needs no word


def test_an_image_remembers_the_files_of_an_adapter_folder(foreign: Path, base: Path, refused: Any):
    assert main(["convert", str(foreign), "--to", "peft", "--out", "folder"]) == 0
    flags = ["--base", str(base), "--device", "cpu", "--steps", "1", "--seeds", "0"]
    assert main(["generate", "a xlo dog", *flags, "-a", "folder:rare_word=xlo"]) == 0
    assert main(["generate", "--from", "out/0001-seed0.png", "--device", "cpu", "--out", "again"]) == 0
    assert Path("again/0001-seed0.png").read_bytes() == Path("out/0001-seed0.png").read_bytes()
    config = Path("folder/adapter_config.json")
    config.write_text(config.read_text().replace('"lora_alpha": 2', '"lora_alpha": 4'))
    assert f"'{config}' has changed since" in refused("generate", "--from", "out/0001-seed0.png")
    os.truncate("folder/adapter_model.safetensors", 9)
    assert "adapter_model.safetensors" in refused("generate", "--from", "out/0001-seed0.png")


def test_convert_writes_for_other_tools_and_back(foreign: Path, capsys: pytest.CaptureFixture[str], refused: Any):
    words = ["--rare-word", "xlo", "--class-word", "dog"]
    assert main(["convert", str(foreign), "--to", "tara", "--out", "ours.safetensors", *words, "--alpha", "8"]) == 0
    assert main(["convert", "ours.safetensors", "--to", "peft", "--out", "folder"]) == 0
    assert main(["convert", "folder", "--to", "kohya", "--out", "back.safetensors"]) == 0
    assert f"back.safetensors: {len(load_adapter(foreign).layers)} layers" in capsys.readouterr().out
    card = load_adapter("back.safetensors").card
    assert (card.rare_word, card.class_word, card.alpha, card.rank) == ("xlo", "dog", 2, 2)
    assert "--rare-word xlo --class-word dog" in refused("convert", foreign, "--to", "tara", "--out", "no.safetensors")
    assert "kohya" in refused("convert", foreign, "--to", "koya", "--out", "no.safetensors")
    assert "not a number" in refused("convert", foreign, "--to", "kohya", "--out", "no.safetensors", "--alpha", "nan")
    assert "--out" in refused("convert", foreign, "--to", "kohya")
    assert not Path("no.safetensors").exists()


@pytest.mark.parametrize(
    ("mask", "to", "noted"), [(True, "kohya", True), (True, "tara", False), (False, "kohya", False)]
)
def test_convert_says_what_a_masked_adapter_loses_in_tools_without_masks(
    mask: bool, to: str, noted: bool, trained: Path, here: Path, capsys: pytest.CaptureFixture[str]
):
    adapter = load_adapter(trained / "rex.safetensors")
    settings = adapter.card.settings | {"token_mask": mask}
    replace(adapter, card=adapter.card.model_copy(update={"settings": settings})).save(here / "rex.safetensors")
    capsys.readouterr()
    assert main(["convert", "rex.safetensors", "--to", to, "--out", "other.safetensors"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert ("was trained with the token mask" in said) is noted
    assert ("train it again with --no-token-mask" in said) is noted


def test_generate_writes_an_image_per_seed_and_a_sheet(trained: Path, base: Path, here: Path):
    assert generate(trained, base, "--seeds", "0-1,7", "--out", "images") == 0
    assert {path.name for path in (here / "images").iterdir()} == {
        "0001-seed0.png",
        "0002-seed1.png",
        "0003-seed7.png",
        "0004-sheet.png",
    }
    origin = read_provenance(here / "images" / "0003-seed7.png")
    assert (origin.prompt, origin.seed, origin.settings.steps) == ("a xlo dog and a szn cat", 7, 2)
    assert [Path(file.path).name for file in origin.adapters] == ["rex.safetensors", "tom.safetensors"]


@pytest.mark.parametrize("start", [False, True], ids=["text", "image"])
def test_an_image_is_repeated_from_its_own_file(trained: Path, base: Path, here: Path, start: bool):
    more = ["--image", str(trained / "dog" / "0.png"), "--strength", "0.7"] if start else ["--width", "40"]
    assert generate(trained, base, *more, "--seeds", "0-2", "--guidance-scale", "3", "--negative-prompt", "a car") == 0
    wanted = (here / "out" / "0002-seed1.png").read_bytes()
    assert main(["generate", "--from", "out/0002-seed1.png", "--out", "again", "--device", "cpu"]) == 0
    assert [path.name for path in sorted((here / "again").iterdir())] == ["0001-seed1.png"]
    assert (here / "again" / "0001-seed1.png").read_bytes() == wanted


def test_flags_change_a_repeated_image(trained: Path, base: Path, here: Path):
    assert generate(trained, base, "--seeds", "1") == 0
    repeat = ["generate", "--from", "out/0001-seed1.png", "--device", "cpu"]
    assert main([*repeat, "--out", "again", "--seeds", "4", "--guidance-scale", "2"]) == 0
    origin = read_provenance(here / "again" / "0001-seed4.png")
    assert (origin.seed, origin.settings.guidance_scale, origin.settings.steps) == (4, 2, 2)


def test_an_image_is_not_repeated_with_a_changed_adapter(trained: Path, base: Path, here: Path, refused: Any):
    shutil.copy(trained / "rex.safetensors", "rex.safetensors")
    assert main(["generate", "a xlo dog", "-a", "rex.safetensors", "--base", str(base), "--steps", "1"]) == 0
    shutil.copy(trained / "tom.safetensors", "rex.safetensors")
    assert "has changed since" in refused("generate", "--from", "out/0001-seed0.png")


@pytest.mark.parametrize("moved", [False, True], ids=["from elsewhere", "files beside the image"])
def test_an_image_is_repeated_from_any_folder(
    trained: Path, base: Path, here: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
):
    shutil.copytree(base, "tiny")
    shutil.copy(trained / "rex.safetensors", "rex.safetensors")
    shutil.copy(trained / "dog" / "0.png", "start.png")
    flags = ["-a", "rex.safetensors:weight=0.8", "--base", "tiny", "--image", "start.png", "--steps", "3"]
    assert main(["generate", "a xlo dog", *flags, "--seeds", "1", "--device", "cpu"]) == 0
    wanted = Image.open(here / "out" / "0001-seed1.png").tobytes()
    if moved:
        here.rename(here.with_name("moved"))
        here = here.with_name("moved")
        for name in ("tiny", "rex.safetensors", "start.png"):
            (here / name).rename(here / "out" / name)
    elsewhere = here / "else" / "where"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    (elsewhere / "rex.safetensors").write_bytes(b"another file of that name")
    assert main(["generate", "--from", str(here / "out" / "0001-seed1.png"), "--out", "again", "--device", "cpu"]) == 0
    assert Image.open(elsewhere / "again" / "0001-seed1.png").tobytes() == wanted


def test_an_adapter_acts_behind_the_tokens_that_a_text_encoder_reads_at_once(
    trained: Path, base: Path, here: Path, capsys: pytest.CaptureFixture[str]
):
    prompt, few = (
        "a car and " * 30 + "a xlo dog",
        ["--base", str(base), "--device", "cpu", "--steps", "2", "--seeds", "0"],
    )
    for name, weight in (("with", 900), ("without", 1e-9)):  # two steps have taught it next to nothing
        assert main(["generate", prompt, "-a", f"{trained / 'rex.safetensors'}:{weight}", *few, "--out", name]) == 0
        assert "Note: " not in capsys.readouterr().err
    images = [Image.open(f"{name}/0001-seed0.png").tobytes() for name in ("with", "without")]
    assert images[0] != images[1]


def bad_photos(folder: Path, kind: str) -> Path:
    """A folder of photos with something wrong: missing, empty, with a text or half an image in it."""
    photos = folder / kind
    if kind != "missing":
        photos.mkdir()
    if kind == "text":
        (photos / "1.png").write_bytes(b"not an image")
    if kind == "cut":
        Image.effect_noise((64, 64), 50).convert("RGB").save(photos / "1.png")
        os.truncate(photos / "1.png", (photos / "1.png").stat().st_size // 2)
    return photos


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "cut"])
def test_bad_photos_are_refused_by_name(kind: str, base: Path, here: Path, refused: Any):
    photos = bad_photos(here, kind)
    said = refused("train", "--images", photos, "--rare-word", "xlo", "--class-word", "dog", "--base", base, *TINY)
    assert ("1.png" if kind in {"text", "cut"} else str(photos)) in said
    assert list(here.rglob("*.safetensors")) == []


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--rank", "0"], "rank"),
        (["--rank", "257"], "rank"),
        (["--rank", "2.5"], "whole number"),
        (["--steps", "0"], "steps"),
        (["--steps", "many"], "whole number"),
        (["--learning-rate", "nan"], "not a number"),
        (["--alignment-loss", "l3"], '"l1"'),
        (["--rnak", "4"], "--rank"),
        (["--prompt", "a photo of a {class_word}"], "xlo"),
        (["--caption-templates", "a photo of a {class_word}"], "xlo"),
        (["--out", "rex.png"], "safetensors"),
        (["--steps"], "--steps"),
    ],
)
def test_bad_settings_are_refused_by_name(
    flags: list[str], part: str, trained: Path, base: Path, here: Path, refused: Any
):
    concept = ["--images", trained / "dog", "--rare-word", "xlo", "--class-word", "dog", "--base", base]
    assert part in refused("train", *concept, *flags)
    assert list(here.rglob("*.safetensors")) == []


@pytest.mark.parametrize(
    ("toml", "part"),
    [
        ("[settings]\nbase = 'sd15'\nrnak = 3\n[[concept]]\nimages='a'\nrare_word='xlo'\nclass_word='dog'\n", "rank"),
        ("[setings]\n", "settings"),
        ("[settings]\n", "[[concept]]"),
        ("[settings\n", "not a TOML file"),
        ("[settings]\nbase = 'sd15'\n[[concept]]\nimages='a'\nrare_word='xlo'\n", "class_word"),
    ],
)
def test_a_bad_recipe_is_refused_by_name(toml: str, part: str, here: Path, refused: Any):
    (here / "recipe.toml").write_text(toml)
    said = refused("train", "recipe.toml")
    assert part in said
    assert "recipe.toml" in said


def test_an_adapter_in_a_recipes_place_is_told_what_a_recipe_is(trained: Path, here: Path, refused: Any):
    said = refused("train", trained / "rex.safetensors")
    assert said.endswith(
        "rex.safetensors is not a recipe. Give a .toml file with concepts, or a run folder such as rex.run."
    )
    shutil.copy(trained / "rex.safetensors", "rex.toml")
    assert "rex.toml is not a TOML file: it is not UTF-8 text" in refused("train", "rex.toml")


def test_a_recipe_and_flags_of_a_concept_exclude_each_other(here: Path, refused: Any):
    assert "--rare-word" in refused("train", "recipe.toml", "--rare-word", "xlo")
    assert "recipe.toml" in refused("train", "recipe.toml")


def test_inspect_names_the_alpha_that_a_published_sd_file_has_lost(here: Path, capsys: pytest.CaptureFixture[str]):
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    halves = {"down": torch.ones(8, 768), "up": torch.ones(5, 8)}
    file = foreign_files.saved(
        here / "rex.safetensors", {f"{layer}.lora_layer.{half}.weight": tensor for half, tensor in halves.items()}
    )
    assert main(["inspect", str(file)]) == 0
    assert "rex.safetensors:alpha=32" in " ".join(capsys.readouterr().err.split())


def test_a_path_that_does_not_exist_is_named_whole_although_it_could_be_on_the_hub(here: Path, refused: Any):
    assert "'path/to/rex.safetensors' is not a local folder or file" in refused("inspect", "path/to/rex.safetensors")


def test_bad_adapters_are_refused_by_name(trained: Path, base: Path, here: Path, refused: Any):
    (here / "empty.safetensors").write_bytes(b"")
    (here / "text.safetensors").write_bytes(b"this is no adapter")
    whole = (trained / "rex.safetensors").read_bytes()
    (here / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    for name in ("empty", "text", "cut", "missing"):
        for command in (["generate", "a xlo dog", "--base", base, "-a"], ["inspect"]):
            assert f"{name}.safetensors" in refused(*command, f"{name}.safetensors")
    assert "Did you mean 'weight'" in refused(
        "generate", "a", "--base", base, "-a", f"{trained / 'rex.safetensors'}:wieght=2"
    )
    assert not (here / "out").exists()


def test_an_adapter_of_another_family_is_refused(trained: Path, here: Path, refused: Any):
    tiny_bases.sdxl_pipeline().save_pretrained(here / "xl")
    said = refused("generate", "a xlo dog", "-a", trained / "rex.safetensors", "--base", here / "xl")
    assert "family" in said
    assert list(here.rglob("*-seed*.png")) == []


def test_a_prompt_without_the_adapters_word_is_refused(trained: Path, base: Path, here: Path, refused: Any):
    said = refused("generate", "a dog", "-a", trained / "rex.safetensors", "--base", base)
    assert said.startswith("'xlo' is not in the prompt 'a dog'. rex.safetensors acts on 'xlo'.")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--seeds", "3-1"], "smaller number first"),
        (["--seeds", "one"], "0-3"),
        (["--seeds", "0-99999"], "Ask for fewer"),
        (["--steps", "0"], "steps"),
        (["--width", "33"], "multiple of 8"),
        (["--scheduler", "eulr"], '"euler"'),
        (["--strength", "0.5"], "give the image too"),
        (["--mask", "a.png"], "give the image too"),
        (["--image", "a.png"], "a.png"),
        (["--batch-size", "0"], "--batch-size"),
        (["--sedes", "3"], "--seeds"),
        (["--from", "a.png"], "a.png"),
        (["--base", "no-such-folder"], "no-such-folder"),
    ],
)
def test_bad_wishes_for_images_are_refused_by_name(flags: list[str], part: str, here: Path, refused: Any):
    base = [] if {"--base", "--from"} & {*flags} else ["--base", "no-such-base"]
    assert part in refused("generate", "a dog", *base, *flags)
    assert list(here.rglob("*.png")) == []


@pytest.mark.parametrize("command", [["generate", "a dog"], ["train", "--images", "a", "--rare-word", "b"]])
def test_a_missing_base_names_the_short_names_and_the_demo(command: list[str], refused: Any):
    said = refused(*command)
    assert all(part in said for part in ("--base sd15", "`tara demo`"))


def test_an_unknown_command_names_the_nearest_one(refused: Any):
    assert '"train"' in refused("trian")


def test_the_demo_prints_its_figures_and_where_to_look(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def run(out: Path, tell: Callable[[str, float], object]) -> dict[str, Any]:
        tell("Training", 0.5)
        figures = {"success": 0.75, "identity": 0.9}
        return {"seconds": {"training": 1, "total": 2}, "peak_memory_mib": 3, "columns": {"tara": figures}}

    monkeypatch.setattr("tara.demo.run", run)
    assert main(["demo", "--out", "here"]) == 0
    shown = capsys.readouterr().out
    assert "tara: success  75%, identity 0.90" in shown
    assert str(Path("here/index.html")) in shown


def test_a_tag_in_the_prompt_names_an_adapter_of_a_folder(trained: Path, base: Path, here: Path):
    few = ["--base", str(base), "--device", "cpu", "--steps", "2", "--seeds", "3"]
    tagged = ["generate", "a xlo dog <lora:rex:0.5>", "--adapters", str(trained), *few]
    named = ["generate", "a xlo dog", "-a", f"{trained / 'rex.safetensors'}:0.5", *few]
    assert main([*tagged, "--out", "tagged"]) == main([*named, "--out", "named"]) == 0
    assert Image.open("tagged/0001-seed3.png").tobytes() == Image.open("named/0001-seed3.png").tobytes()
