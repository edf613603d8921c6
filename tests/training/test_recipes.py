"""The recipes and the conda environment beside the published scripts."""

import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml

from published_commands import QUICK, TRAIN_SD, TRAIN_SDXL, typed
from tara.cli.published import SD_TRAINING, SDXL_TRAINING, recipe_of
from tara.training.run.recipe_files import read_recipe

ROOT = Path(__file__).parents[2]


def test_the_conda_environment_installs_this_package_on_a_python_that_it_supports():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == "tara"
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["."]}
    version = next(entry.removeprefix("python=") for entry in conda if entry.startswith("python="))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={version}"


def test_the_sdxl_script_is_also_a_command_because_it_is_published_without_python_before_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    command = EntryPoint(SDXL_TRAINING.file, scripts[SDXL_TRAINING.file], "console_scripts").load()
    monkeypatch.setattr("sys.argv", [SDXL_TRAINING.file, "--help"])
    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 0
    assert SDXL_TRAINING.file in capsys.readouterr().out


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.name)
def test_every_recipe_is_understood(file: Path):
    settings = read_recipe(file).settings
    published = file.name.startswith("official")
    assert settings.targets == ("attention" if published else "cross_kv")


def test_the_official_recipes_are_what_the_published_commands_mean(tmp_path: Path):
    for name, script, command in (("sd15", SD_TRAINING, TRAIN_SD), ("sdxl", SDXL_TRAINING, TRAIN_SDXL)):
        recipe = read_recipe(ROOT / "recipes" / f"official-{name}.toml").settings
        as_published = {part: part for part in QUICK} | {"path/to/your/images": tmp_path}
        commanded = recipe_of(script.parse(typed(command, as_published))).settings
        other = {"base", "checkpoint_every", "preview_images", "report_to", "gradient_checkpointing"}
        assert recipe.model_dump(exclude=other) == commanded.model_dump(exclude=other)
