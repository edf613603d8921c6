"""The base's small parts, made once for all tests of the embedded world."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

import toyland
from toyland.text import build_text_encoder
from toyland.tokenizer import build_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tokenizer of these tests lies."""
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> CLIPTokenizer:
    """A freshly made tokenizer."""
    return CLIPTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture(scope="session")
def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untaught text encoder."""
    torch.manual_seed(0)
    return build_text_encoder(tokenizer).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The folder of the shipped base."""
    assert toyland.BASE.is_dir(), "the base's weights are not in this checkout"
    return toyland.BASE
