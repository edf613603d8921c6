"""Commands that are refused or stopped: one sentence, a number, and nothing left that was not there before."""

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cli_commands import TINY, generate
from tara.adapters.adapter import load_adapter
from tara.cli import main
from tara.training.run.steps import TrainingInterrupted


def test_what_needs_no_base_is_refused_before_the_base(trained: Path, here: Path, refused: Any):
    rex, base = trained / "rex.safetensors", ["--base", "no-such-folder"]
    (here / "no.png").write_bytes(b"no picture")
    assert "'xlo' is not in the prompt" in refused("generate", "a dog", "-a", rex, *base)
    assert "'szn' is not in the prompt" in refused("generate", "a xlo dog", "-a", f"{rex}:rare_word=szn", *base)
    assert "no.png is not a complete image" in refused("generate", "a xlo dog", "-a", rex, "--image", "no.png", *base)
    # plain addition listens to no word, and a rebound adapter to another one: only the base is missing then
    for spec, more in ((rex, ["--composer", "sum"]), (f"{rex}:rare_word=dog", [])):
        assert "no-such-folder" in refused("generate", "a dog", "-a", spec, *more, *base)


def test_an_output_folder_that_cannot_be_written_to_is_refused(trained: Path, base: Path, here: Path, refused: Any):
    (here / "file").write_text("in the way")
    photos = trained / "dog"
    flags = ["--images", photos, "--rare-word", "xlo", "--class-word", "dog", "--base", base, *TINY]
    assert "file" in refused("train", *flags, "--out", here / "file" / "rex.safetensors")
    assert "file" in refused("generate", "a dog", "--base", base, "--out", here / "file")


def test_a_full_disk_leaves_nothing_half_written(
    trained: Path, base: Path, here: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tara.storage.files.os.fsync", full)
    flags = ["--images", trained / "dog", "--rare-word", "xlo", "--class-word", "dog", "--base", base, *TINY]
    assert "disk is full" in refused("train", *flags, "--out", "rex.safetensors")
    assert "disk is full" in refused("generate", "a dog", "--base", base, "--steps", "1", "--seeds", "0")
    assert list(here.iterdir()) == []


def test_no_bar_stands_above_the_sentence_of_a_refused_command(
    trained: Path, base: Path, here: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["--images", str(trained / "dog"), "--rare-word", "xlo", "--class-word", "dog", "--device", "cpu"]
    assert main(["train", *flags, "--base", "no-such-folder"]) == 2
    # the note comes first, and what only the loaded base can refuse last
    assert generate(trained, base, "--clip-skip", "50", prompt="a xlo dog and a xlo dog", adapters=1) == 2
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == ["Error", "Note", "Error"]
    assert list(here.iterdir()) == []


def test_ctrl_c_keeps_a_checkpoint_and_tells_how_to_go_on(
    trained: Path, base: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    flags = [
        "--images",
        str(trained / "dog"),
        "--rare-word",
        "xlo",
        "--class-word",
        "dog",
        "--base",
        str(base),
        "--rank",
        "2",
    ]
    flags += ["--steps", "8", "--device", "cpu"]
    assert main(["train", *flags, "--out", "whole.safetensors"]) == 0

    @contextmanager
    def stopping(title: str) -> Iterator[Callable[..., None]]:
        yield lambda done, *_: signal.raise_signal(signal.SIGINT) if done == 3 else None

    with monkeypatch.context() as patch:
        patch.setattr("tara.cli.train.progress", stopping)
        capsys.readouterr()
        assert main(["train", *flags, "--out", "rex.safetensors"]) == 130
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert not (here / "rex.safetensors").exists()
    command = said.split("tara ", 1)[1].strip().rstrip(".").split()
    assert main(command) == 0
    whole, resumed = (load_adapter(here / f"{name}.safetensors") for name in ("whole", "rex"))
    assert all(bool((whole.layers[layer].b == resumed.layers[layer].b).all()) for layer in whole.layers)


def test_ctrl_c_elsewhere_is_130_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, trained: Path, base: Path, here: Path
):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tara.inference.pipeline.load_base", interrupted)
    assert generate(trained, base) == 130
    said = capsys.readouterr().err.strip()
    assert said.startswith("Stopped. Start again with: tara generate 'a xlo dog and a szn cat' -a ")


def test_ctrl_c_in_the_demos_training_recommends_the_demo(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def stopped(*_: object, **__: object) -> None:
        raise TrainingInterrupted(here / "a.run", 3)

    monkeypatch.setattr("tara.demo.load_base", lambda *_, **__: None)
    monkeypatch.setattr("tara.demo.train_recipe", stopped)
    assert main(["demo", "--out", "my demo"]) == 130
    assert capsys.readouterr().err.strip() == "Stopped. Start again with: tara demo --out 'my demo'"
