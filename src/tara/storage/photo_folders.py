"""The files of a photo folder: photos, their captions, kohya's numbered subfolders, and what is ignored."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from tara.errors import TaraError

CAPTION_TABLE = "metadata.jsonl"
CAPTIONS = (".txt", ".caption")
"""Endings of caption files; of two for one photo the first counts."""
KOHYA = re.compile(r"(?P<repeats>\d{1,3})_(?P<words>\S.*)")
# fmt: off
PHOTOS = (
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic", ".heif", ".avif", ".jp2",
)
NO_PHOTOS = (
    ".mp4", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v", ".3gp", ".wmv", ".db", ".ini", ".npz", ".json",
    ".md", ".pdf",
)
# fmt: on
NOTES = ("readme", "note", "notes", "license", "licence", "todo", "info")
"""Text files of these names describe a folder, not a photo."""
MOST_NAMED = 4


@dataclass(frozen=True, kw_only=True)
class PhotoFolder:
    """The files of one folder by name: photos, caption files, and those that are neither.

    ``repeats`` is the relative frequency of the folder's photos in training.
    """

    path: Path
    photos: tuple[Path, ...]
    captions: tuple[Path, ...]
    ignored: tuple[Path, ...]
    repeats: int = 1

    @property
    def used(self) -> tuple[Path, ...]:
        """The files that a training depends on."""
        table = self.path / CAPTION_TABLE
        return (*self.photos, *self.captions, *((table,) if table.is_file() else ()))


@dataclass(frozen=True, kw_only=True)
class KohyaName:
    """What kohya's scripts read from a folder's name, ``10_xlo dog``."""

    repeats: int
    rare_word: str
    class_word: str


def photo_folders(folder: Path, content: str = "the concept's photos") -> list[PhotoFolder]:
    """The files of a folder or, if it has subfolders with kohya's names (``10_xlo dog``), those of these subfolders.

    Raises:
        TaraError: for a folder that does not exist or cannot be read, and subfolders of several concepts.
    """
    numbered = {path: name for path in _entries(folder, content) if path.is_dir() and (name := kohya_name(path))}
    if not numbered:
        return [_listed(folder, content)]
    others = [path for path, name in numbered.items() if name.rare_word != next(iter(numbered.values())).rare_word]
    if others:
        first = next(iter(numbered))
        raise TaraError(
            f"The folder {folder} has photos of several concepts, '{first.name}' and '{others[0].name}'. Give the "
            f"folder of one, such as '{first}', or all of them as [[concept]] tables of a TOML file."
        )
    # only the ratio of the folders' repeats matters, because the length of training is given in steps
    unit = math.gcd(*(name.repeats for name in numbered.values())) or 1
    folders = [replace(_listed(path, content), repeats=name.repeats // unit) for path, name in numbered.items()]
    beside = _listed(folder, content)
    return [*folders, replace(beside, photos=(), captions=(), ignored=(*beside.ignored, *beside.photos))]


def kohya_name(folder: Path) -> KohyaName | None:
    """The parts of a folder's name ``10_xlo dog``; None for any other name."""
    if (match := KOHYA.fullmatch(folder.absolute().name)) is None:
        return None
    rare_word, _, class_word = match["words"].partition(" ")
    return KohyaName(repeats=int(match["repeats"]), rare_word=rare_word, class_word=" ".join(class_word.split()))


def kohya_names(folder: Path) -> list[KohyaName]:
    """The kohya names of a folder's subfolders, else of the folder itself; empty if there are none."""
    paths = [path for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
    return [name for path in (paths if any(map(kohya_name, paths)) else [folder]) if (name := kohya_name(path))]


def ignored_sentence(folder: Path, ignored: Sequence[Path]) -> str:
    """One sentence about the ignored files of a folder; empty if all of them are hidden."""
    shown = [path for path in ignored if not path.name.startswith(".")]
    if not shown:
        return ""
    names = ", ".join(path.name for path in ignored[:MOST_NAMED])
    more = f" and {len(ignored) - MOST_NAMED} more" if len(ignored) > MOST_NAMED else ""
    if len(ignored) == 1:
        return f"1 file in {folder} is ignored, because it is no photo or caption: {names}."
    return f"{len(ignored)} files in {folder} are ignored, because they are no photos or captions: {names}{more}."


def _listed(folder: Path, content: str) -> PhotoFolder:
    files = [path for path in _entries(folder, content) if path.is_file() and path.name != CAPTION_TABLE]
    texts = [path for path in files if path.suffix.lower() in CAPTIONS]
    photos = tuple(path for path in files if path not in texts and _is_photo(path))
    others = {path.stem for path in files if path not in texts and path not in photos}
    stems = {path.stem for path in photos}
    captions = [path for path in texts if path.stem in stems or not (path.stem.lower() in NOTES or path.stem in others)]
    ignored = tuple(path for path in files if path not in photos and path not in captions)
    return PhotoFolder(path=folder, photos=photos, captions=tuple(captions), ignored=ignored)


def _entries(folder: Path, content: str) -> list[Path]:
    if not folder.exists():
        raise TaraError(f"There is no folder {folder}. Give the folder that holds {content}.")
    if not folder.is_dir():
        raise TaraError(f"{folder} is a file. Give the folder that holds {content}.")
    try:
        return sorted(folder.iterdir())
    except OSError as failure:
        raise TaraError(f"The folder {folder} cannot be read ({failure.strerror}). Check its permissions.") from failure


def _is_photo(path: Path) -> bool:
    """Whether a file is meant to be a photo, by its suffix or, if that says nothing, by its content."""
    suffix = path.suffix.lower()
    if path.name.startswith(".") or suffix in NO_PHOTOS:
        return False
    if suffix in PHOTOS:
        return True
    try:
        with Image.open(path):
            return True
    except UnidentifiedImageError:
        return False
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return True  # the error is reported when the photo is read
