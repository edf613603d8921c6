"""Atomic writing of files, and reading of text files with a size limit."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tara.errors import TaraError

UNFINISHED = ".unfinished-"
SMALL, LARGE = 2**20, 64 * 2**20  # largest text in bytes: written by a person, and by a program


def atomic_write(path: Path, content: bytes | Callable[[Path], object]) -> None:
    """Write a file atomically: a reader sees the old file (or none) or the new one, never a part of it.

    Args:
        path: the file; missing folders are made.
        content: its bytes, or a function that writes them to the temporary path it is given (same suffix).

    Raises:
        TaraError: when the folder cannot be written to or the disk is full; nothing is left behind then.
    """
    temporary: Path | None = None
    new_folders: list[Path] = []
    try:
        new_folders = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
        writable_folder(path.parent)
        # beside the target, because os.replace is atomic only within one file system
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path), suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException as failure:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        for folder in new_folders:
            with suppress(OSError):  # another process may have written into it, or it was never made
                folder.rmdir()
        if isinstance(failure, OSError):
            raise write_error(path, failure) from failure
        raise


def remove_unfinished(folder: Path, *of: Path) -> None:
    """Remove the temporary files that `atomic_write` left in a folder because its process was killed.

    Args:
        folder: no other process may be writing in it.
        of: the files whose temporary files are removed; if empty, those of all files in the folder and its subfolders.
    """
    if of:
        prefixes, left = tuple(map(_prefix, of)), folder.glob(f".*{UNFINISHED}*")
    else:
        prefixes, left = (".",), folder.rglob(f".*{UNFINISHED}*")
    for path in left:
        if path.name.startswith(prefixes):
            path.unlink(missing_ok=True)


def _prefix(path: Path) -> str:
    # hidden, so that it is not taken for a result, and short enough for any file name
    return f".{path.stem[:40]}{UNFINISHED}"


def small_text(path: Path, most: int = SMALL, encoding: str = "utf-8") -> str:
    """A file's text.

    Raises:
        TaraError: when it is larger than ``most`` bytes; it is then not read.
        OSError, UnicodeDecodeError: when it does not exist or is not text.
    """
    if (size := path.stat().st_size) > most:
        raise TaraError(
            f"{path} has {size >> 10} KiB, more than the limit of {most >> 10} KiB. Check that it is the right file."
        )
    return path.read_text(encoding=encoding)


def digest(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_there(path: Path) -> bool:
    """Whether a path exists; False for a path that is too long for the file system."""
    try:
        return path.exists()
    except OSError:
        return False


def writable_folder(folder: Path) -> Path:
    """The folder, made if it is missing.

    Raises:
        TaraError: when it cannot be made, is a file, or cannot be written to.
    """
    check_writable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise write_error(folder, failure) from failure
    return folder


def check_writable(folder: Path) -> None:
    """Make sure that files can be written to a folder, without making it.

    Raises:
        TaraError: when it or the folder that it would be made in is a file, or cannot be written to.
    """
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        if not there.is_dir():
            raise TaraError(f"'{there}' is a file, not a folder. Choose another output folder.")
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as failure:
        raise write_error(folder, failure) from failure


def write_error(path: Path, failure: OSError) -> TaraError:
    """The error for a file or folder that could not be written."""
    if failure.errno in (errno.ENOSPC, errno.EDQUOT):
        return TaraError(f"The disk is full: '{path}' was not written. Free some space, or choose another disk.")
    reason = failure.strerror or str(failure)
    return TaraError(f"'{path}' cannot be written ({reason}). Choose a folder that you may write to.")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
