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
SMALL, LARGE = 2**20, 64 * 2**20  # bytes of a text: one that a person writes, one that a program writes for a person


def atomic_write(path: Path, content: bytes | Callable[[Path], object]) -> None:
    """Write a file in one stroke: whoever looks sees the old file, the new one, or none, never half of one.

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
            with suppress(OSError):  # it may have been filled by somebody else, or never made
                folder.rmdir()
        if isinstance(failure, OSError):
            raise write_error(path, failure) from failure
        raise


def remove_unfinished(folder: Path, *of: Path) -> None:
    """Remove what `atomic_write` was writing in a folder when its process was killed.

    Args:
        folder: nobody may be writing in it now.
        of: the files whose leftovers are removed; those of all files in the folder and its subfolders when left out.
    """
    if of:
        prefixes, left = tuple(map(_prefix, of)), folder.glob(f".*{UNFINISHED}*")
    else:
        prefixes, left = (".",), folder.rglob(f".*{UNFINISHED}*")
    for path in left:
        if path.name.startswith(prefixes):
            path.unlink(missing_ok=True)


def _prefix(path: Path) -> str:
    # hidden, so that nobody takes it for a result, and short enough whatever the file is called
    return f".{path.stem[:40]}{UNFINISHED}"


def small_text(path: Path, most: int = SMALL, encoding: str = "utf-8") -> str:
    """A file's text.

    Raises:
        TaraError: when it is larger than any that a person writes, ``most`` bytes; it is then not read.
        OSError, UnicodeDecodeError: when it is not there, or no text.
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
    """Whether there is something of a name that a file or a user gives; of a name that is too long there is nothing."""
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
    """What to tell when a file or folder could not be written."""
    if failure.errno in (errno.ENOSPC, errno.EDQUOT):
        return TaraError(f"The disk is full: '{path}' was not written. Free some space, or choose another disk.")
    reason = failure.strerror or str(failure)
    return TaraError(f"'{path}' cannot be written ({reason}). Choose a folder that you may write to.")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
