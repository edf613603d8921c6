"""The page of a training run: what it shows, in which order, and that no text of a file becomes a part of it."""

import base64
import io
import re
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cli_commands import TINY
from tara.cli import app, main
from tara.cli.train import recipe_of as recipe_from_flags
from tara.families.base import Base
from tara.families.family import Defaults
from tara.inference.settings import GenerationSettings
from tara.report.command_line import flags
from tara.training.concept_settings import ConceptSettings
from tara.training.inputs import check_inputs
from tara.training.resolved import settings_summary
from tara.training.run.folder import RunFolder
from tara.training.run.page import spread, train_command
from tara.training.run.run import train_recipe
from tara.training.run.steps import TrainingInterrupted
from tara.training.settings import Recipe, TrainSettings
from training_fixtures import photo_folder, quick, recipe_of, two_concepts

pytestmark = pytest.mark.usefixtures("pages")
EVIL = "<script>alert(1)</script>"


def shown(html: str) -> list[tuple[int, int]]:
    """The sizes of a page's images in their order."""
    found = re.findall(r'src="data:image/png;base64,([^"]*)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(data))).size for data in found]


def test_a_run_leaves_a_page_of_previews_photos_losses_settings_and_its_command(shared_base: Base, tmp_path: Path):
    prompt = "the {rare_word} {class_word} on grass"
    settings = quick(preview_every=1, preview_images=2, preview_prompt=prompt, base="mine", steps=2)
    recipe = Recipe(settings=settings, concepts=tuple(two_concepts(tmp_path)))
    train_recipe(recipe, shared_base)
    html = RunFolder(recipe.run_folder).page.read_text(encoding="utf-8")
    places = ["the xlo dog on grass", "Photos of xlo dog", "the szn cat on grass", 'class="wide"', "Losses", "Settings"]
    found = [html.index(place) for place in [*places, "Versions", "<h2>Command"]]
    assert found == sorted(found)
    assert shown(html) == [(32, 32)] * (4 + 3 + 4 + 2) + [(1120, 630)]  # previews, dogs, previews, cats, losses
    assert "step 1</th>" in html
    assert "step 2</th>" in html
    assert "2 steps." in html
    assert f"tara train {recipe.run_folder} --overwrite" in html


def test_a_run_without_previews_shows_its_photos(shared_base: Base, tmp_path: Path):
    recipe = Recipe(settings=quick(steps=1), concepts=tuple(two_concepts(tmp_path)[:1]))
    train_recipe(recipe, shared_base)
    assert shown(RunFolder(recipe.run_folder).page.read_text(encoding="utf-8")) == [(32, 32)] * 3 + [(1120, 630)]


def test_a_stopped_run_leaves_a_page_that_says_so(shared_base: Base, tmp_path: Path):
    recipe = recipe_of(tmp_path)
    with pytest.raises(TrainingInterrupted):
        train_recipe(recipe, shared_base, on_step=lambda _: signal.raise_signal(signal.SIGINT))
    assert "stopped after 1 of 4 steps" in RunFolder(recipe.run_folder).page.read_text(encoding="utf-8")


def test_no_text_of_a_run_becomes_a_part_of_its_page(shared_base: Base, tmp_path: Path):
    photos = photo_folder(tmp_path / "dog")
    (photos / "0.png").rename(photos / "<b onclick=alert(1)>.png")
    concept = ConceptSettings(
        images=photos,
        rare_word="xlo",
        class_word=EVIL,
        name=EVIL,
        prompt="a xlo {class_word}",
        out=tmp_path / "rex.safetensors",
    )
    settings = quick(steps=1, alignment_loss="off", preview_every=1, preview_prompt=f"{{rare_word}} {EVIL}", base=EVIL)
    recipe = Recipe(settings=settings, concepts=(concept,))
    train_recipe(recipe, shared_base)
    html = RunFolder(recipe.run_folder).page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "<b " not in html
    assert html.count("&lt;script&gt;") > 5


def test_a_page_shows_few_columns_and_always_the_last_step():
    assert spread([100, 200], 6) == [100, 200]
    many = list(range(50, 1001, 50))
    assert len(spread(many, 6)) == len(set(spread(many, 6))) == 6
    assert spread(many, 6)[-1] == 1000


def page_of(recipe: Recipe) -> str:
    return RunFolder(recipe.run_folder).page.read_text(encoding="utf-8")


def test_a_page_shows_what_settings_came_to_those_that_are_not_the_default_first(sd_pipe: Any, tmp_path: Path):
    own = Base(sd_pipe, defaults=Defaults(rank=3, steps=2, learning_rate=2e-3))
    settings = TrainSettings(base="mine", steps=1, optimizer="prodigy")
    recipe = Recipe(settings=settings, concepts=tuple(two_concepts(tmp_path)[:1]))
    train_recipe(recipe, own)
    changed, others = page_of(recipe).split("Settings that are not the default")[1].split("All other settings")
    changed, others = (re.sub(r"\s*<[^>]*>\s*", "|", part) for part in (changed, others))
    assert "|steps||1||2 (this base)|" in changed
    assert "|optimizer||prodigy||adamw|" in changed
    for row in ("rank||3||this base", "alpha||3||sd-32", "resolution||32||sd-32", "learning_rate||1||"):
        assert f"|{row}" in others
        assert f"|{row.split('|')[0]}|" not in changed
    for row in ("precision||fp32||all bases", "snr_gamma||off||all bases", "seed||0||all bases"):
        assert f"|{row}|" in others
    for name in TrainSettings.model_fields.keys() - {"base"}:
        assert (f"|{name}|" in changed) != (f"|{name}|" in others)


def test_a_training_says_what_its_settings_came_to(sd_pipe: Any, tmp_path: Path):
    own = Base(sd_pipe, defaults=Defaults(learning_rate=3e-3, batch_size=4))
    inputs = check_inputs(two_concepts(tmp_path), TrainSettings(base="mine", rank=4, batch_size=2), own)
    assert settings_summary(inputs.settings, own) == (
        "Settings: resolution 32, rank 4, alpha 4, learning_rate 0.003*, lr_scheduler constant, steps 1000, "
        "batch_size 2, targets cross_kv, seed 0.\n(* the base's own default)"
    )


def test_the_command_line_says_what_it_resolved_and_its_bar_counts_those_steps(
    base: Path, here: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(base, "own")
    Path("own/defaults.json").write_text('{"steps": 2, "rank": 2}', encoding="utf-8")
    given = ["--images", str(photo_folder(here / "dog")), "--rare-word", "xlo", "--class-word", "dog", "--base", "own"]
    assert main(["train", *given, "--device", "cpu", "--out", "rex.safetensors"]) == 0
    shown = capsys.readouterr()
    assert "rank 2*, alpha 2, learning_rate 0.0001, lr_scheduler constant, steps 2*," in shown.out
    assert "2/2" in shown.err


def test_the_command_of_one_concept_gives_its_settings_again(tmp_path: Path):
    recipe = Recipe(
        settings=TrainSettings(
            base="sd15", steps=7, token_mask=False, flip=False, masked_loss=True, alignment_loss="off", snr_gamma=5.0
        ),
        concepts=(
            ConceptSettings(
                images=tmp_path / "my photos",
                rare_word="xlo",
                class_word="toy dog",
                caption_templates=("a {rare_word} {class_word}", "-- {rare_word}, a {class_word}'s"),
                out=tmp_path / "rex.safetensors",
            ),
        ),
    )
    _, bound, _ = app.parse_args(
        shlex.split(train_command(recipe, Defaults()))[1:], exit_on_error=False, print_error=False
    )
    assert recipe_from_flags(None, bound.kwargs) == recipe


def test_the_command_gives_what_differs_from_the_bases_own_defaults(tmp_path: Path):
    settings = TrainSettings(base="own", steps=1000, batch_size=4, flip=True)
    recipe = Recipe(settings=settings, concepts=tuple(two_concepts(tmp_path)[:1]))
    command = train_command(recipe, Defaults(steps=400, batch_size=4, flip=False))
    assert command.endswith("--base own --steps 1000 --flip")


def test_flags_are_those_that_differ_from_a_default():
    settings = GenerationSettings(steps=30, guidance_scale=3.0, negative_prompt="-")
    assert flags(settings) == ["--negative-prompt=-", "--guidance-scale", "3.0"]


def test_the_command_line_says_where_the_page_is(base: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    photos = photo_folder(here / "dog")
    given = ["--images", str(photos), "--rare-word", "xlo", "--class-word", "dog", "--base", str(base), *TINY]
    assert main(["train", *given, "--out", "rex.safetensors"]) == 0
    assert str(Path("rex.run/index.html")) in capsys.readouterr().out
    html = Path("rex.run/index.html").read_text(encoding="utf-8")
    assert "tara train --images" in html
    assert "--device cpu --rank 2 --steps 2" in html
