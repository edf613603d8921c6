"""Existing images: folders of PNG files with their provenance, and JSON lists."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from tara.errors import TaraError, nearest
from tara.evaluation.subjects import ImageRecord, Subject, class_category, prompted_subjects
from tara.inference.active_adapter import parse_adapter
from tara.inference.provenance import Provenance, read_provenance, relocated
from tara.storage.files import LARGE, is_there, small_text
from tara.storage.outputs import SHEET
from tara.storage.validation import build

IMAGES = "images"
LIST = 'Images of other tools need a JSON list beside them, like [{"file": "a.jpg", "prompt": "a xlo dog"}].'


class Entry(BaseModel, frozen=True, extra="forbid"):
    """One entry of a JSON list. ``subjects`` are names such as ``xlo dog``; by default, those that the prompt names."""

    file: Path
    prompt: str
    seed: int | None = None
    series: str | None = None
    subjects: tuple[str, ...] | None = None


FoundImage = tuple[Entry, Provenance | None]  # with its provenance, if known


def find_images(places: Sequence[Path]) -> list[FoundImage]:
    """The images of folders and of JSON lists. In a folder, every PNG file must contain its provenance.

    A list holds ``{"file": ..., "prompt": ..., "seed": ..., "series": ..., "subjects": ["xlo dog", ...]}`` for each
    image; file and prompt are required. By default the series is the name of the folder or list.

    Raises:
        TaraError: when a place or image is missing, a place holds none, or an image has no provenance.
    """
    names = [place.stem if place.suffix == ".json" else place.absolute().name for place in places]
    images: list[FoundImage] = []
    for place, name in zip(places, names, strict=True):
        series = name if names.count(name) == 1 else str(place)
        images += _listed(place, series) if place.suffix == ".json" else _in_folder(place, series)
    return images


def adapter_words(images: Sequence[FoundImage]) -> list[tuple[str, str]]:
    """(rare word, class word) of every adapter that the images were generated with and that can still be read."""
    # relocating reads the adapter files, so it is done once per folder and set of adapters
    distinct = {(made.adapters, entry.file.parent): (made, entry.file) for entry, made in images if made}
    files = [file.given for made, image in distinct.values() for file in relocated(made, image).adapters]
    words: list[tuple[str, str]] = []
    for file in dict.fromkeys(files):
        with suppress(TaraError):  # such as images of another machine; then --references must name the class words
            active = parse_adapter(file)
            words.append((active.rare_word, active.class_word))
    return [(rare_word, class_word) for rare_word, class_word in dict.fromkeys(words) if rare_word and class_word]


def image_records(images: Sequence[FoundImage], subjects: Sequence[Subject]) -> list[ImageRecord]:
    """The images with the subjects that they should show.

    Raises:
        TaraError: when a prompt names none of them, or a list names an unknown one.
    """
    by_name = {subject.name.casefold(): subject for subject in subjects}
    records: list[ImageRecord] = []
    for entry, _ in images:
        for name in entry.subjects or ():
            if name.casefold() not in by_name:
                raise TaraError(
                    f"'{entry.file}' should show '{name}', but there are no photos of it.{nearest(name, by_name)} "
                    f"Add --references '{name}=FOLDER'."
                )
        listed = tuple(by_name[name.casefold()] for name in entry.subjects or ())
        shown = listed or prompted_subjects(entry.prompt, subjects)
        if not shown:
            names = ", ".join(subject.name for subject in subjects)
            raise TaraError(
                f"The prompt of '{entry.file}', '{entry.prompt}', names none of the subjects ({names}). "
                "Leave it out, or give the photos of its subjects with --references."
            )
        category = class_category(shown)
        records.append(ImageRecord(entry.file, entry.series or "", entry.prompt, entry.seed, shown, category))
    return records


def _in_folder(folder: Path, series: str) -> list[FoundImage]:
    if not folder.is_dir():
        raise TaraError(f"There is no folder '{folder}'. Give folders of images, or JSON lists of them.")
    images: list[FoundImage] = []
    inside = folder / IMAGES if (folder / IMAGES).is_dir() else folder
    # an evaluation's folder has its images in subfolders, one series per composer
    for path in sorted(folder.glob("*.png")) or sorted(inside.rglob("*.png")):
        if path.name.endswith(SHEET) or path.name.startswith("."):  # hidden: left by a killed command
            continue
        try:
            made = read_provenance(path)
        except TaraError as failure:
            raise TaraError(f"{failure} {LIST}") from failure
        own = series if path.parent == folder else f"{series} {made.settings.composer}"
        images.append((Entry(file=path, prompt=made.prompt, seed=made.seed, series=own), made))
    if not images:
        raise TaraError(f"'{folder}' has no images that `tara generate` wrote. {LIST}")
    return images


def _listed(path: Path, series: str) -> list[FoundImage]:
    try:
        rows: Any = json.loads(small_text(path, LARGE))
    except OSError as failure:
        raise TaraError(f"'{path}' cannot be read ({failure.strerror}). Give a JSON list of images.") from failure
    except (ValueError, RecursionError) as failure:
        raise TaraError(f"'{path}' is not a JSON file: {failure}. Correct it.") from failure
    if not isinstance(rows, list) or not rows:
        raise TaraError(f"'{path}' is not a list of images. {LIST}")
    images: list[FoundImage] = []
    for number, row in enumerate(cast(list[Any], rows), 1):
        entry = build(Entry, row, f"'{path}', entry {number}: ")
        file = path.parent / entry.file
        if not (is_there(file) and file.is_file()):
            raise TaraError(f"'{path}', entry {number}: there is no image {file}. Correct the name.")
        images.append((entry.model_copy(update={"file": file, "series": entry.series or series}), None))
    return images
