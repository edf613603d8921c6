"""Tiny bases of the full-size families, for the benchmarks that build them."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch

import tiny_bases


def small_pipeline() -> Any:
    """Stable Diffusion's shape with a U-Net of one level, which is quickly compiled."""
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    return tiny_bases.sd_pipeline(block_out_channels=(16,), **blocks)


BUILDERS: dict[str, Callable[[], Any]] = {"sd15": small_pipeline, "sdxl": tiny_bases.sdxl_pipeline}


@dataclass(frozen=True)
class TinyFamily:
    """A full-size family's name, and its tiny pipeline."""

    name: str
    build: Callable[[], Any]


@pytest.fixture(params=["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
def family(request: pytest.FixtureRequest, benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> TinyFamily:
    """A family, of which the benchmark builds a tiny pipeline instead of a full-size one."""
    build = BUILDERS[request.param]
    monkeypatch.setattr(getattr(benchmark, "speed", benchmark), "random_pipeline", lambda _: build())
    return TinyFamily(request.param, build)


@pytest.fixture
def shape(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The shape of the tiny pipelines, and words of one token in their vocabulary."""
    words = ("dog", "cat", "car", "toy", "house", "robot", "rex", "tom")
    monkeypatch.setattr(benchmark.speed, "WORDS", words)
    return benchmark.speed.Shape(configs="sd1", dtype=torch.float32, pixels=32, own_pixels=32)
