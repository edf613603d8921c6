"""Tiny models, built once for all tests of the evaluation."""

from pathlib import Path

import pytest

import tiny_models


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model of every type; read only."""
    folder = tmp_path_factory.mktemp("models")
    for build in (
        tiny_models.dinov2,
        tiny_models.dino,
        tiny_models.clip,
        tiny_models.owlv2,
        tiny_models.grounding_dino,
    ):
        build(folder / build.__name__)
    return folder
