"""Files that are written whole or not at all."""

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from tara.errors import TaraError


def atomic_write(path: Path, content: bytes | Callable[[Path], object]) -> None:
    """Write a file in one stroke: whoever looks sees the old file, the new one, or none, never half of one.

    Args:
        path: the file; missing folders are made.
        content: its bytes, or a function that writes them to the temporary path it is given (same suffix).

    Raises:
        TaraError: when the folder cannot be written to or the disk is full; nothing is left behind then.
    """
    writable_folder(path.parent)
    temporary: Path | None = None
    try:
        # beside the target, because os.replace is atomic only within one file system
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
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
        temporary = None
    except OSError as failure:
        raise write_error(path, failure) from failure
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def writable_folder(folder: Path) -> Path:
    """The folder, made if it is missing.

    Raises:
        TaraError: when it cannot be made, is a file, or cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError) as failure:
        raise TaraError(f"'{folder}' is a file, not a folder. Choose another output folder.") from failure
    except OSError as failure:
        raise write_error(folder, failure) from failure
    return folder


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
