"""Bases that tests of training only read, and runs without the plots and pages that have tests of their own."""

from typing import Any

import pytest

import tiny_bases
from tara.families.base import Base
from training_fixtures import in_float64


@pytest.fixture(scope="session")
def shared_base() -> Base:
    """SD's shape in float32; a training leaves a base as it was, so that one serves many."""
    return Base(tiny_bases.sd_pipeline())


@pytest.fixture(scope="session")
def shared_sdxl() -> Base:
    """SDXL's shape in float32."""
    return Base(tiny_bases.sdxl_pipeline())


@pytest.fixture(scope="session")
def float64_base() -> Base:
    """SD's shape in float64, with v prediction."""
    return in_float64(tiny_bases.sd_pipeline("v_prediction"))


@pytest.fixture(scope="session")
def float64_sdxl() -> Base:
    """SDXL's shape in float64."""
    return in_float64(tiny_bases.sdxl_pipeline())


@pytest.fixture
def pages() -> None:
    """For tests that read plots and pages, which are not made otherwise."""


@pytest.fixture(autouse=True)
def quick_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few denoising steps in previews and class images; no plots and pages but for tests that ask for them."""
    monkeypatch.setattr("tara.training.run.generated.PREVIEW_STEPS", 1)
    monkeypatch.setattr("tara.training.run.generated.CLASS_STEPS", 1)
    if "pages" not in request.fixturenames:

        def nothing(*_: Any) -> bytes:
            return b"not made in this test"

        monkeypatch.setattr("tara.training.run.page.loss_curve", nothing)
        monkeypatch.setattr("tara.training.run.steps.write_run_page", nothing)
