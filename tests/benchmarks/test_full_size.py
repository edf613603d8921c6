"""The proof at full size: its form on a tiny base, and the proof itself where photos and patience are there."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import tiny_bases
from tara.families.single_file import CONFIGS
from training_fixtures import photo_folder

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("full_size")


def data_set(folder: Path) -> Path:
    """Photos of a dog and a cat as the DreamBooth data set has them."""
    for name in ("dog", "cat"):
        photo_folder(folder / name, photos=2, seed=len(name))
    table = "Classes\n\nsubject_name,class\ndog,dog\ncat,cat\n"
    (folder / "prompts_and_classes.txt").write_text(table, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("family", "build"), [("sd15", tiny_bases.sd_pipeline), ("sdxl", tiny_bases.sdxl_pipeline)], ids=["sd15", "sdxl"]
)
def test_a_row_tells_time_and_memory_of_training_and_composing(
    proof: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, family: str, build: Callable[[], Any]
):
    monkeypatch.setattr(proof, "random_pipeline", lambda _: build())
    monkeypatch.setattr(proof, "RESOLUTION", 32)
    row = proof.measure(family, data_set(tmp_path), steps=2, threads=1)
    parts = {"load", "caching", "training_step", "picture", "denoising_step"}
    assert set(row["seconds"]) == set(row["cpu_seconds"]) == parts
    peaks = list(row["peak_memory_gib"].values())
    assert peaks == sorted(peaks)
    assert row["steps"]["training"] == len(row["losses"]) == 2


def test_a_familys_new_row_takes_the_place_of_its_old_one_and_keeps_the_others(proof: ModuleType):
    def row(family: str, *peaks: float) -> dict[str, Any]:
        return {"family": family, "peak_memory_gib": dict(enumerate(peaks))}

    result = proof.result_of([row("sd15", 5.0, 7.9)], [row("sd15", 9.0), row("sdxl", 19.0, 20.5)])
    assert [one["family"] for one in result["rows"]] == ["sd15", "sdxl"]
    assert [tuple(one.values()) for one in result["checks"]] == [
        ("sd15, peak memory, GiB", 7.9, "<= 8", True),
        ("sdxl, peak memory, GiB", 20.5, "<= 20", False),
    ]


@pytest.mark.parametrize(("family", "layers"), [("sd1", 16), ("sdxl", 70)])
def test_a_pipeline_has_its_familys_published_shape(
    proof: ModuleType, monkeypatch: pytest.MonkeyPatch, family: str, layers: int
):
    build = proof.random_part

    def shape_alone(library: str, kind: str, configs: Path) -> Any:
        with torch.device("cpu" if configs.name == "scheduler" else "meta"):
            return build(library, kind, configs)

    monkeypatch.setattr(proof, "random_part", shape_alone)
    pipe = proof.random_pipeline(CONFIGS / family)
    assert sum(name.endswith(".attn2.processor") for name in pipe.unet.attn_processors) == layers
    assert pipe.tokenizer("a dog").input_ids[0] == 49406


@pytest.mark.slow
@pytest.mark.timeout(4 * 60 * 60)
def test_stable_diffusion_at_full_size_is_trained_and_composed_in_8_gib(proof: ModuleType):
    if not proof.PHOTOS.is_dir():
        pytest.skip(f"needs the DreamBooth data set in {proof.PHOTOS}")
    (row,) = proof.run(["sd15"], proof.PHOTOS, steps=1, threads=torch.get_num_threads())
    assert row["parameters"]["unet"] == 859_520_964
    assert row["layers_that_learn"] == 32
    assert [one["holds"] for one in proof.result_of([row])["checks"]] == [True]
