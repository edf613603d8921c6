"""Tiny pipelines for every test, and shapes checked at run time in the pure modules."""

from typing import Any

import jaxtyping
import pytest

with jaxtyping.install_import_hook(["tara.lora", "tara.losses", "tara.tokens"], "beartype.beartype"):
    import tara.lora
    import tara.losses
    import tara.tokens  # noqa: F401

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

import tiny_bases

torch.set_num_threads(1)  # sums then have one order, and tests may run beside something else


def pytest_configure(config: pytest.Config) -> None:
    """Warnings of other libraries about each other, which neither they nor we act on."""
    config.addinivalue_line(
        "filterwarnings", "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    )


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
