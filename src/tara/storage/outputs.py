"""What a command does if its output already exists: nothing is replaced silently (docs/reliability.md)."""

import filecmp
import json
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tara.errors import TaraError
from tara.storage.files import LARGE, atomic_write, check_writable, is_there, small_text
from tara.storage.lock import LOCK, OWNER, folder_lock

SETTINGS = "settings.json"
"""In an output folder: the settings that its content was made with."""
SHEET = "sheet.png"
"""An image that shows all images of a command; where there may be several, with a number before it."""
NEXT = "Choose another --out, or replace it with --overwrite (overwrite=True in Python)."
_NUMBERED = re.compile(r"(\d+)-.+\.png")


def is_finished(
    place: Path, settings: Mapping[str, Any], earlier: Mapping[str, Any] | None, *, overwrite: bool = False
) -> bool:
    """Whether an output exists and was made with the same settings, so that there is nothing to do.

    Args:
        place: the file or folder.
        settings: the settings that it would be made with now, by name.
        earlier: the settings that it was made with; None if unknown.
        overwrite: whether it may be replaced.

    Raises:
        TaraError: when it exists and was made with other settings, which the message names.
    """
    if overwrite or not is_there(place):
        return False
    if earlier is None:
        raise TaraError(f"'{place}' exists already. {NEXT}")
    different = [name for name in dict.fromkeys([*earlier, *settings]) if earlier.get(name) != settings.get(name)]
    if different:
        raise TaraError(f"'{place}' exists already and differs in: {', '.join(different)}. {NEXT}")
    return True


@contextmanager
def output_folder(out: Path, settings: Mapping[str, Any], *results: str, overwrite: bool) -> Generator[bool]:
    """Lock an output folder; yields True if it already holds the complete results of these settings.

    Args:
        out: the folder; created if missing, and removed again if nothing is written into it.
        settings: the settings, by name; the folder keeps them in ``settings.json``.
        results: names of the files that the command writes; the last name is the file that is written last.
        overwrite: whether results of other settings may be replaced.

    Raises:
        TaraError: see `is_finished` and `tara.storage.lock.folder_lock`.
    """
    settings = json.loads(json.dumps(settings, default=str))  # in the form in which JSON is read back
    check_writable(out)
    with folder_lock(out):
        existing = [name for name in (SETTINGS, *results) if (out / name).exists()]
        same = bool(existing) and is_finished(out, settings, _earlier(out), overwrite=overwrite)
        atomic_write(out / SETTINGS, (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode())
        try:
            yield same and results[-1] in existing
        finally:
            if not existing and {path.name for path in out.iterdir()} <= {SETTINGS, LOCK, OWNER}:
                (out / SETTINGS).unlink()


def _earlier(out: Path) -> dict[str, Any] | None:
    try:
        settings = json.loads(small_text(out / SETTINGS, LARGE))
    except (OSError, ValueError, RecursionError, TaraError):
        return None
    return settings if isinstance(settings, dict) else None  # pyright: ignore[reportUnknownVariableType]


def next_number(folder: Path) -> int:
    """The number of a folder's next image: its largest number plus 1; 1 in an empty folder."""
    names = (_NUMBERED.fullmatch(path.name) for path in (folder.iterdir() if folder.is_dir() else ()))
    return max((int(match[1]) for match in names if match), default=0) + 1


def image_name(number: int, seed: int) -> str:
    """An image's file name: its number in the folder and its seed, ``0007-seed42.png``."""
    return f"{number:04d}-seed{seed}.png"


def same_content(one: Path, other: Path) -> bool:
    """Whether two files, or the files of two folders, are equal byte by byte."""
    if one.is_dir() and other.is_dir():
        names = [{path.name for path in folder.iterdir()} for folder in (one, other)]
        return names[0] == names[1] and not any(filecmp.cmpfiles(one, other, names[0], shallow=False)[1:])
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)
