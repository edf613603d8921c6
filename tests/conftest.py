"""Tiny pipelines and adapters for every test, and shapes checked at run time in all modules of core."""

# ruff: noqa: E402 (core is imported with its shapes checked before anything else imports it)

import importlib
import os
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import jaxtyping
import pytest

# before anything reads it: no test asks the hub, nor waits for it
os.environ["HF_HUB_OFFLINE"] = "1"

import tara.core

CORE = [f"tara.core.{module.name}" for module in pkgutil.iter_modules(tara.core.__path__)]
with jaxtyping.install_import_hook(CORE, "beartype.beartype"):
    for module in CORE:
        importlib.import_module(module)

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

import tiny_bases
from cli_commands import TINY
from tara.cli import main
from training_fixtures import photo_folder

torch.set_num_threads(1)  # sums then have one order, and tests may run beside something else
hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Warnings of other libraries about each other, which neither they nor we act on."""
    for warning in ("__array__ implementation doesn't accept a copy keyword", "Deprecated in 0.9.0. BPE.__init__"):
        config.addinivalue_line("filterwarnings", f"ignore:{warning}:DeprecationWarning")


@pytest.fixture
def benchmark(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script in benchmarks/ that the test module is called after."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module(request.module.__name__.removeprefix("test_"))


@pytest.fixture
def sd_pipe() -> StableDiffusionPipeline:
    """A fresh SD-shaped pipeline, epsilon prediction, 32 x 32 pixels."""
    return tiny_bases.sd_pipeline()


@pytest.fixture
def v_pipe() -> StableDiffusionPipeline:
    """The same with v prediction."""
    return tiny_bases.sd_pipeline("v_prediction")


@pytest.fixture
def sdxl_pipe() -> StableDiffusionXLPipeline:
    """A fresh SDXL-shaped pipeline."""
    return tiny_bases.sdxl_pipeline()


@pytest.fixture(params=["sd", "v", "sdxl"])
def any_pipe(request: pytest.FixtureRequest) -> Any:
    """Each shape of base in turn."""
    build = {
        "sd": tiny_bases.sd_pipeline,
        "v": lambda: tiny_bases.sd_pipeline("v_prediction"),
        "sdxl": tiny_bases.sdxl_pipeline,
    }
    return build[request.param]()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder."""
    folder = tmp_path_factory.mktemp("bases") / "tiny"
    tiny_bases.sd_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A folder with photos of a dog and a cat, and an adapter of each."""
    folder = tmp_path_factory.mktemp("trained")
    for kind, word, out in (("dog", "xlo", "rex"), ("cat", "szn", "tom")):
        photos = photo_folder(folder / kind, seed=len(word))
        flags = ["--images", str(photos), "--rare-word", word, "--class-word", kind, "--base", str(base), *TINY]
        assert main(["train", *flags, "--out", str(folder / f"{out}.safetensors")]) == 0
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail with exit code 2 and one sentence or two on a line; returns that line."""

    def run(*arguments: Any) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr()
        lines = [line for line in said.err.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1, said.err
        assert said.err.rstrip().endswith(lines[0])
        assert "Traceback" not in said.err + said.out
        return lines[0].removeprefix("Error: ")

    return run
