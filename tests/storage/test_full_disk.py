"""A disk that is full, or may not be written to: one sentence, and what was there before is still there."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image

import hostile_words
from tara.adapters.adapter import load_adapter
from tara.adapters.convert import convert
from tara.errors import TaraError
from tara.evaluation.features import FeatureCache
from tara.storage.files import UNFINISHED, atomic_write, check_writable
from tara.storage.lock import folder_lock
from tara.training.checkpoints import TrainingState, checkpoints, load_checkpoint, save_checkpoint
from tara.training.run.metrics import append_metrics
from tara.training.run.run import train_recipe
from tara.training.settings import Recipe
from training_fixtures import quick, two_concepts

SIZE = 2 * 1024 * 1024


def mounted(*arguments: str | Path) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted("-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", disk)
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that not even root may write to."""
    folder = tmp_path / "locked"
    folder.mkdir()
    (folder / "there.txt").write_text("old")
    mounted("--bind", folder, folder)
    try:
        mounted("-o", "remount,bind,ro", folder)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, left: int) -> Path:
    """Take all but so many bytes."""
    filler = disk / "filler"
    filler.write_bytes(b"")
    with filler.open("wb") as file:
        file.write(bytes(SIZE - left))
    return filler


def too_much(path: Path) -> dict[str, Callable[[], object]]:
    """Everything of tara's that writes files, each with more than there is room for."""
    matrix = {"weights": torch.rand(100, 400)}
    state = TrainingState(step=2, tensors=matrix, plain={})
    adapter = load_adapter(hostile_words.adapter(path.parents[1] / "a.safetensors", "xlo"))
    noise = Image.effect_noise((300, 300), 90)
    return {
        "bytes": lambda: atomic_write(path / "a.bin", bytes(10**5)),
        "an image": lambda: atomic_write(path / "a.png", lambda place: noise.save(place)),
        "a checkpoint": lambda: save_checkpoint(path, state),
        "metrics": lambda: append_metrics(path / "metrics.jsonl", {"step": 1, "note": "x" * 10**5}),
        "an adapter": lambda: [adapter.save(path / f"{n}.safetensors") for n in range(100)],
        "another tool's adapter": lambda: [convert(adapter, "kohya", path / f"k{n}.safetensors") for n in range(100)],
        "the cache": lambda: FeatureCache(path, 1)("m", [noise], lambda images: [torch.rand(10**5).numpy()]),
    }


@pytest.mark.parametrize(
    "what", ["bytes", "an image", "a checkpoint", "metrics", "an adapter", "another tool's adapter", "the cache"]
)
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(small_disk: Path, what: str):
    filler = fill(small_disk, left=32 * 1024)
    with pytest.raises(TaraError, match="disk is full"):
        too_much(small_disk)[what]()
    assert [path for path in small_disk.rglob("*") if UNFINISHED in path.name or path.suffix == ".bin"] == []
    assert filler.stat().st_size == SIZE - 32 * 1024


def test_a_full_disk_keeps_the_checkpoint_before(small_disk: Path):
    good = save_checkpoint(small_disk, TrainingState(step=1, tensors={"weights": torch.ones(10)}, plain={}))
    fill(small_disk, left=32 * 1024)
    with pytest.raises(TaraError, match="disk is full"):
        save_checkpoint(small_disk, TrainingState(step=2, tensors={"weights": torch.ones(10**5)}, plain={}))
    assert checkpoints(small_disk) == [good]
    assert load_checkpoint(good).step == 1


def test_a_training_on_a_disk_that_fills_up_goes_on_when_there_is_room(sd_pipe: Any, small_disk: Path, tmp_path: Path):
    concepts = [
        concept.model_copy(update={"out": small_disk / concept.file.name}) for concept in two_concepts(tmp_path)
    ]
    recipe = Recipe(settings=quick(steps=3, checkpoint_every=1), concepts=tuple(concepts))
    filler = small_disk / "filler"

    def fill_up(record: Any) -> None:
        if record.index == 2:
            disk = os.statvfs(small_disk)
            filler.write_bytes(bytes(disk.f_bavail * disk.f_frsize - 4096))

    with pytest.raises(TaraError, match="disk is full"):
        train_recipe(recipe, sd_pipe, on_step=fill_up)
    filler.unlink()
    train_recipe(recipe, sd_pipe, resume=True)
    assert all(load_adapter(concept.file).layers for concept in concepts)


def test_a_folder_that_may_not_be_written_to_is_refused_before_any_work(read_only: Path):
    for attempt in (
        lambda: check_writable(read_only),
        lambda: check_writable(read_only / "new" / "deep"),
        lambda: atomic_write(read_only / "a.txt", b"new"),
        lambda: atomic_write(read_only / "there.txt", b"new"),
        lambda: folder_lock(read_only).__enter__(),
    ):
        with pytest.raises(TaraError, match=r"cannot be written \(Read-only file system\)"):
            attempt()
    assert (read_only / "there.txt").read_text() == "old"
    assert [path.name for path in read_only.iterdir()] == ["there.txt"]


def test_files_survive_a_disk_that_fills_up_while_they_are_replaced(small_disk: Path):
    path = small_disk / "a.safetensors"
    safetensors.torch.save_file({"a": torch.ones(100)}, path)
    before = path.read_bytes()
    fill(small_disk, left=32 * 1024)
    with pytest.raises(TaraError, match="disk is full"):
        atomic_write(path, bytes(10**5))
    assert path.read_bytes() == before
