"""The GPU session: parts are kept as they end, stopped at their limits, and not run again."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from toyland.denoiser_state import DenoiserRecipe, new_state

TOOLS = Path(__file__).parents[2] / "tools"
DEVICE_FILE_LIMIT = 16 * 2**20


@pytest.fixture
def gpu_session(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("gpu_session")


def states(out: Path) -> dict[str, Any]:
    """State of each part, as the session's file has it."""
    session = json.loads((out / "session.json").read_text())
    return {name: part["state"] for name, part in session.items()}


def test_each_part_ends_by_itself_or_at_its_limit_and_what_is_done_is_not_run_again(
    gpu_session: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    runs = tmp_path / "runs"

    def write(word: str) -> tuple[str, str]:
        return "-c", f"print('{word}'); open({str(runs)!r}, 'a').write('{word} ')"

    parts = [
        gpu_session.Part(name="first", command=write("first"), share=0.9),
        gpu_session.Part(name="wrong", command=("-c", "raise SystemExit('no such device')"), share=0.9),
        gpu_session.Part(name="endless", command=("-c", "import time; time.sleep(600)"), share=0.0001),
        gpu_session.Part(name="rest", command=write("rest")),
    ]
    monkeypatch.setattr(gpu_session, "parts_of", lambda out, work, device: parts)
    arguments = ["--minutes", "100", "--out", str(tmp_path / "out")]
    gpu_session.main(arguments)
    expected = {"first": "done", "wrong": "failed", "endless": "stopped at its limit", "rest": "done"}
    assert states(tmp_path / "out") == expected
    assert runs.read_text() == "first rest "
    session = json.loads((tmp_path / "out" / "session.json").read_text())
    assert session["wrong"]["output"] == ["no such device"]
    gpu_session.main(arguments)
    assert states(tmp_path / "out") == expected
    assert runs.read_text() == "first rest "


def test_a_session_without_time_left_says_so_for_every_part(gpu_session: ModuleType, tmp_path: Path):
    gpu_session.main(["--minutes", "1e-9", "--device", "cpu", "--out", str(tmp_path / "out")])
    assert set(states(tmp_path / "out").values()) == {"no time left"}
    assert list(states(tmp_path / "out"))[-1] == "base"


def test_the_trained_base_comes_back_in_half_precision_in_small_files(gpu_session: ModuleType, tmp_path: Path):
    new_state(DenoiserRecipe(), torch.device("cpu")).save(tmp_path / "denoiser.safetensors", 0)
    gpu_session.save_unet(tmp_path, tmp_path / "out")
    files = list((tmp_path / "out" / "unet").glob("*.safetensors"))
    assert files
    assert all(file.stat().st_size < DEVICE_FILE_LIMIT for file in files)


@pytest.mark.slow
def test_a_session_of_two_minutes_on_a_cpu_runs_to_its_end(tmp_path: Path):
    out = tmp_path / "out"
    command = [sys.executable, str(TOOLS / "gpu_session.py"), "--minutes", "2", "--device", "cpu", "--out", str(out)]
    subprocess.run(command, check=True, timeout=280)
    assert set(states(out).values()) <= {"done", "stopped at its limit", "no time left"}
    assert len(states(out)) == 8
