"""Files are written whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from tara.errors import TaraError, nearest
from tara.storage.files import atomic_write, check_writable, writable_folder


def _names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    atomic_write(path, b"old")
    atomic_write(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"
    assert _names(path.parent) == ["file.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    atomic_write(path, b"old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, fail)
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["file.txt"]


def test_a_full_disk_is_one_clear_sentence(tmp_path: Path) -> None:
    def full(temporary: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(TaraError, match="disk is full"):
        atomic_write(tmp_path / "new" / "deep" / "file.txt", full)
    assert _names(tmp_path) == []


def test_a_folder_is_checked_without_a_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "deep")
    assert _names(tmp_path) == []


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(TaraError, match="is a file, not a folder"):
        writable_folder(tmp_path / "taken")
    with pytest.raises(TaraError, match="is a file, not a folder"):
        atomic_write(tmp_path / "taken" / "file.txt", b"")
    with pytest.raises(TaraError, match=r"/taken' is a file"):
        check_writable(tmp_path / "taken" / "x" / "y")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(TaraError, match="cannot be written"):
        atomic_write(tmp_path / "file.txt", b"")


def test_the_nearest_name_is_offered_or_none() -> None:
    assert nearest("wieght", ["weight", "rare_word"]) == " Did you mean 'weight'?"
    assert nearest("zzz", ["weight", "rare_word"]) == ""
