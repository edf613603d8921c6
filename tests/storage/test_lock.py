"""Two runs do not meet in one folder, and a killed one leaves nothing that stands in the way."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli_commands import TINY
from tara.cli import main
from tara.errors import TaraError
from tara.storage.files import UNFINISHED, atomic_write
from tara.storage.lock import folder_lock, refuse_locked

HOLD = """
import sys, time
from pathlib import Path
from tara.storage.lock import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def held_by_another(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_by_the_first_ones_process_and_a_killed_one_holds_nothing(tmp_path: Path):
    folder = tmp_path / "rex.run"
    process = held_by_another(folder)
    try:
        with pytest.raises(TaraError, match=f"is in use by process {process.pid} on "), folder_lock(folder):
            pass
        with pytest.raises(TaraError, match=f"process {process.pid} on "):
            refuse_locked(folder)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    refuse_locked(folder)
    with folder_lock(folder):
        assert (folder / ".process").read_text().startswith(f"process {os.getpid()} ")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("command", ["generate", "compare", "attention", "demo", "train"])
def test_every_command_is_refused_where_another_process_is_at_work(
    command: str, trained: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "rex.run"
    generation = ["a xlo dog", "-a", str(trained / "rex.safetensors"), "--base", str(base), "--device", "cpu"]
    photos = ["--images", str(trained / "dog"), "--rare-word", "xlo", "--class-word", "dog", "--base", str(base), *TINY]
    flags = {"demo": [], "train": photos}.get(command, [*generation, "--steps", "1"])
    where = out.with_suffix(".safetensors") if command == "train" else out
    process = held_by_another(out)
    try:
        capsys.readouterr()
        assert main([command, *flags, "--out", str(where)]) == 2
        assert f"is in use by process {process.pid} on " in "".join(capsys.readouterr().err.split("\n"))
        assert sorted(path.name for path in out.iterdir()) == [".lock", ".process"]
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_folder_that_nothing_was_written_to_is_gone_again(tmp_path: Path):
    with pytest.raises(KeyError), folder_lock(tmp_path / "new" / "deep"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_has_half_written_is_removed_and_nothing_else(tmp_path: Path):
    atomic_write(tmp_path / "a.png", b"whole")
    half = tmp_path / "previews" / f".a{UNFINISHED}x1y2.png"
    half.parent.mkdir()
    half.write_bytes(b"ha")
    (tmp_path / ".notes").write_text("mine")
    with folder_lock(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".notes", "a.png", "previews"]


def test_a_file_that_is_being_written_is_hidden_and_short_whatever_its_name(tmp_path: Path):
    seen: list[str] = []
    atomic_write(tmp_path / f"{'x' * 240}.png", lambda path: (seen.append(path.name), path.write_bytes(b"a")))
    assert seen[0].startswith(".xxx")
    assert seen[0].endswith(".png")
    assert len(seen[0]) < 100
