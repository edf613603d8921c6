"""Training and composing at full size: on a tiny base, and at full size where the photos are."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tara.families.single_file import CONFIGS
from training_fixtures import photo_folder


def data_set(folder: Path) -> Path:
    """Photos of a dog and a cat as the DreamBooth data set has them."""
    for name in ("dog", "cat"):
        photo_folder(folder / name, photos=2, seed=len(name))
    table = "Classes\n\nsubject_name,class\ndog,dog\ncat,cat\n"
    (folder / "prompts_and_classes.txt").write_text(table, encoding="utf-8")
    return folder


def test_a_row_has_time_and_memory_of_training_and_composing(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, family: Any
):
    monkeypatch.setattr(benchmark, "RESOLUTION", 32)
    row = benchmark.measure(family.name, data_set(tmp_path), steps=2, threads=1)
    parts = {"load", "caching", "training_step", "picture", "denoising_step"}
    assert set(row["seconds"]) == set(row["cpu_seconds"]) == parts
    peaks = list(row["peak_memory_gib"].values())
    assert peaks == sorted(peaks)
    assert row["steps"]["training"] == len(row["losses"]) == 2


def test_a_familys_new_row_replaces_its_old_one_and_keeps_the_others(benchmark: ModuleType):
    def row(name: str, *peaks: float) -> dict[str, Any]:
        return {"family": name, "peak_memory_gib": dict(enumerate(peaks))}

    result = benchmark.result_of([row("sd15", 5.0, 7.9)], [row("sd15", 9.0), row("sdxl", 19.0, 20.5)])
    assert [one["family"] for one in result["rows"]] == ["sd15", "sdxl"]
    assert [tuple(one.values()) for one in result["checks"]] == [
        ("sd15, peak memory, GiB", 7.9, "<= 8", True),
        ("sdxl, peak memory, GiB", 20.5, "<= 20", False),
    ]


@pytest.mark.parametrize(("configs", "layers"), [("sd1", 16), ("sdxl", 70)])
def test_a_pipeline_has_its_familys_published_shape(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, configs: str, layers: int
):
    build = benchmark.random_part

    def shape_alone(library: str, class_name: str, folder: Path) -> Any:
        with torch.device("cpu" if folder.name == "scheduler" else "meta"):
            return build(library, class_name, folder)

    monkeypatch.setattr(benchmark, "random_part", shape_alone)
    pipe = benchmark.random_pipeline(CONFIGS / configs)
    assert sum(name.endswith(".attn2.processor") for name in pipe.unet.attn_processors) == layers
    assert pipe.tokenizer("a dog").input_ids[0] == 49406


@pytest.mark.slow
@pytest.mark.timeout(4 * 60 * 60)
def test_stable_diffusion_at_full_size_is_trained_and_composed_in_8_gib(benchmark: ModuleType):
    if not benchmark.PHOTOS.is_dir():
        pytest.skip(f"needs the DreamBooth data set in {benchmark.PHOTOS}")
    (row,) = benchmark.run(["sd15"], benchmark.PHOTOS, steps=1, threads=torch.get_num_threads())
    assert row["parameters"]["unet"] == 859_520_964
    assert row["layers_that_learn"] == 32
    assert [one["holds"] for one in benchmark.result_of([row])["checks"]] == [True]
