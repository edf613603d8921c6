"""Pictures of a class for prior preservation: those in a folder, and the missing ones drawn by the base."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tara.families.base import Backbone
from tara.inference.pipeline import Studio
from tara.storage.file_names import file_name
from tara.storage.files import atomic_write, check_writable
from tara.training.concepts import prior_acts
from tara.training.settings import ConceptSettings, TrainSettings

STEPS = 30


def class_folders(concepts: Sequence[ConceptSettings], settings: TrainSettings, run_folder: Path) -> dict[str, Path]:
    """Each class word's folder of class pictures; empty when prior preservation changes nothing."""
    if not prior_acts(settings):
        return {}
    root = settings.class_folder or run_folder / "class"
    kinds = {concept.kind for concept in concepts}
    if len(kinds) == 1 and root.is_dir() and any(_is_picture(path) for path in root.iterdir()):
        return dict.fromkeys(kinds, root)
    return {kind: root / file_name(kind) for kind in kinds}


def draw_missing(
    prompt: str,
    folder: Path,
    count: int,
    backbone: Backbone,
    on_picture: Callable[[int, int], object] | None = None,
) -> None:
    """Draw class pictures until the folder holds ``count``; each is a function of its number.

    Args:
        prompt: see :func:`tara.training.concepts.class_phrase`.
        folder: made if missing; pictures of the user's own count too.
        count: number of pictures wanted.
        backbone: the base that draws.
        on_picture: told (pictures there, pictures wanted) after each one.

    Raises:
        TaraError: when the folder cannot be written to or the disk is full.
    """
    check_writable(folder)
    there = sum(_is_picture(path) for path in folder.iterdir()) if folder.is_dir() else 0
    numbers = [number for number in range(count) if not _file(folder, number).exists()][: max(0, count - there)]
    if not numbers:
        return
    for made in Studio(backbone).stream(prompt, seeds=numbers, steps=STEPS):
        atomic_write(_file(folder, made.seed), lambda path, image=made.image: image.save(path))
        there += 1
        if on_picture is not None:
            on_picture(there, count)


def _is_picture(path: Path) -> bool:
    # a hidden file may be what a killed run has left half-written
    return path.is_file() and path.suffix not in {".txt", ".jsonl"} and path.name[0] != "."


def _file(folder: Path, number: int) -> Path:
    return folder / f"class-{number:04d}.png"
