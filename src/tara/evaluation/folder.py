"""Pictures that are there already: folders of PNG files that tell how they were made, and JSON lists."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from tara.errors import TaraError, nearest
from tara.evaluation.subjects import Picture, Subject, asked_for, part_of
from tara.inference.binding import parse_adapter
from tara.inference.provenance import Origin, read_origin, relocated
from tara.storage.files import LARGE, is_there, small_text
from tara.storage.validation import build

SHEET = "sheet.png"  # `tara generate` leaves it beside the pictures
LIST = 'Pictures from elsewhere need a JSON list beside them, like [{"file": "a.jpg", "prompt": "a xlo dog"}].'


class Entry(BaseModel, frozen=True, extra="forbid"):
    """One picture of a JSON list."""

    file: Path
    prompt: str
    seed: int | None = None
    series: str | None = None
    subjects: tuple[str, ...] | None = None
    """``WORD KIND`` of each; by the prompt if left out."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A picture, and what is known of it."""

    path: Path
    entry: Entry
    origin: Origin | None = None

    @property
    def base(self) -> str | None:
        """The base that drew it, as far as it tells."""
        return self.origin.settings.base if self.origin else None


def find_pictures(places: Sequence[Path]) -> list[Found]:
    """The pictures of folders, in which every PNG must tell how it was made, and of JSON lists.

    A list holds ``{"file": ..., "prompt": ..., "seed": ..., "series": ..., "subjects": ["xlo dog", ...]}`` for each
    picture, of which file and prompt must be given. Otherwise a series is a folder or list, by its name.

    Raises:
        TaraError: when a place or picture is missing, a place holds none, or a picture does not tell.
    """
    names = [place.stem if place.suffix == ".json" else place.absolute().name for place in places]
    found: list[Found] = []
    for place, name in zip(places, names, strict=True):
        series = name if names.count(name) == 1 else str(place)
        found += _listed(place, series) if place.suffix == ".json" else _in_folder(place, series)
    return found


def adapter_words(found: Sequence[Found]) -> list[tuple[str, str]]:
    """(rare word, class word) of the adapters that drew the pictures, as far as their files are still there."""
    specs = [file.given for one in found if one.origin for file in relocated(one.origin, one.path).adapters]
    words: list[tuple[str, str]] = []
    for spec in dict.fromkeys(specs):
        try:
            active = parse_adapter(spec)
        except TaraError:  # somebody else's pictures, say; then the class words must be given
            continue
        words.append((active.rare_word, active.class_word))
    return [(word, kind) for word, kind in dict.fromkeys(words) if word and kind]


def asked_pictures(found: Sequence[Found], subjects: Sequence[Subject]) -> list[Picture]:
    """The pictures with the subjects that they should show.

    Raises:
        TaraError: when a picture's prompt names none of them, or a list names an unknown one.
    """
    pictures: list[Picture] = []
    for one in found:
        asked = _listed_subjects(one, subjects) if one.entry.subjects else asked_for(one.entry.prompt, subjects)
        if not asked:
            names = ", ".join(subject.name for subject in subjects)
            raise TaraError(
                f"'{one.path}' should show none of the subjects ({names}): its prompt is '{one.entry.prompt}'. "
                "Leave it out, or give the photos of its subjects with --references."
            )
        pictures.append(
            Picture(
                path=one.path,
                series=one.entry.series or "",
                prompt=one.entry.prompt,
                seed=one.entry.seed,
                subjects=asked,
                part=part_of(asked),
            )
        )
    return pictures


def _in_folder(folder: Path, series: str) -> list[Found]:
    if not folder.is_dir():
        raise TaraError(f"There is no folder '{folder}'. Give folders of pictures, or JSON lists of them.")
    found: list[Found] = []
    for path in sorted(folder.glob("*.png")):
        if path.name != SHEET and not path.name.startswith("."):  # what a killed command has half-written
            origin = _origin(path)
            entry = Entry(file=path, prompt=origin.prompt, seed=origin.seed, series=series)
            found.append(Found(path=path, entry=entry, origin=origin))
    if not found:
        raise TaraError(f"'{folder}' holds no pictures that `tara generate` wrote. {LIST}")
    return found


def _origin(path: Path) -> Origin:
    try:
        return read_origin(path)
    except TaraError as failure:
        raise TaraError(f"{failure} {LIST}") from failure


def _listed(path: Path, series: str) -> list[Found]:
    try:
        rows: Any = json.loads(small_text(path, LARGE))
    except OSError as failure:
        raise TaraError(f"'{path}' cannot be read ({failure.strerror}). Give a JSON list of pictures.") from failure
    except (ValueError, RecursionError) as failure:
        raise TaraError(f"'{path}' is no JSON file: {failure}. Correct it.") from failure
    if not isinstance(rows, list) or not rows:
        raise TaraError(f"'{path}' is no list of pictures. {LIST}")
    found: list[Found] = []
    for number, row in enumerate(cast(list[Any], rows), 1):
        entry = build(Entry, row, f"'{path}', entry {number}: ")
        picture = path.parent / entry.file
        if not (is_there(picture) and picture.is_file()):
            raise TaraError(f"'{path}', entry {number}: there is no picture {picture}. Correct the name.")
        found.append(Found(path=picture, entry=entry.model_copy(update={"series": entry.series or series})))
    return found


def _listed_subjects(one: Found, subjects: Sequence[Subject]) -> tuple[Subject, ...]:
    by_name = {subject.name.casefold(): subject for subject in subjects}
    for name in one.entry.subjects or ():
        if name.casefold() not in by_name:
            raise TaraError(
                f"'{one.path}' should show '{name}', whose photos nobody has given.{nearest(name, by_name)} "
                f"Add --references '{name}=FOLDER'."
            )
    return tuple(by_name[name.casefold()] for name in one.entry.subjects or ())
