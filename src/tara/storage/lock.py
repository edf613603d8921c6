"""A lock on a folder for one run at a time; it ends with its process, even if that is killed."""

import os
import platform
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tara.errors import TaraError
from tara.storage.files import remove_unfinished, writable_folder, write_error

LOCK, OWNER = ".lock", ".process"


@contextmanager
def folder_lock(folder: Path) -> Generator[None]:
    """Lock a folder for this process, creating it if needed, and remove files that a killed process left half-written.

    The system releases the lock when the process ends. A folder that is created here and stays empty is removed.

    Raises:
        TaraError: when another process has the lock (the message names it), or the folder cannot be written to.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    writable_folder(folder)
    lock = _locked(folder)
    try:
        _write_owner(folder)
        remove_unfinished(folder)
        yield
    finally:
        for name in (OWNER, LOCK):
            with suppress(OSError):  # only Unix can remove an open file; a lock file that stays does no harm
                (folder / name).unlink(missing_ok=True)
        lock.release()
        for place in made:
            with suppress(OSError):  # the folder is not empty
                place.rmdir()


def refuse_locked(folder: Path) -> None:
    """Raises TaraError if another process has locked the folder. Leaves no files in an unlocked folder."""
    if (folder / LOCK).exists():
        _locked(folder).release()


def _locked(folder: Path) -> FileLock:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as failure:
        raise TaraError(
            f"'{folder}' is in use by {_owner(folder)}. Wait until it ends, or choose another output folder."
        ) from failure
    except OSError as failure:
        raise write_error(folder, failure) from failure
    return lock


def _write_owner(folder: Path) -> None:
    try:
        (folder / OWNER).write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
    except OSError as failure:
        raise write_error(folder / OWNER, failure) from failure


def _owner(folder: Path) -> str:
    try:
        return (folder / OWNER).read_text(encoding="utf-8")[:200] or "another process"
    except (OSError, UnicodeDecodeError):  # that process has not written its name yet
        return "another process"
