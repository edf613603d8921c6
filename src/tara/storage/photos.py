"""Reads a folder of photos: upright RGB images, their captions, and masks of the subject."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tara.errors import TaraError, first_line, warn
from tara.storage.files import SMALL, small_text
from tara.storage.images import on_white, opacity, read_image_with_alpha
from tara.storage.photo_folders import CAPTION_TABLE, CAPTIONS, ignored_sentence, photo_folders

MOST_TABLE = 16 * SMALL  # bytes
SHAPE_TOLERANCE = 0.02  # tolerance of the aspect ratio: the sides of a smaller mask are rounded


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One photo: its file name, the RGB image and the captions that it may be trained with."""

    name: str
    image: Image.Image
    captions: tuple[str, ...]
    mask: Image.Image | None = None
    """The image's size, 255 on the subject, 0 elsewhere; None when the whole image counts."""
    repeats: int = 1
    """How often it is trained with, compared with a photo that has 1."""


def read_photos(
    folder: Path, templates: Sequence[str], *, masked: bool = False, masks: Path | None = None
) -> list[Photo]:
    """Read every photo of a folder, sorted by name, with its captions and, if it is ``masked``, its mask.

    A photo's captions come from its ``.txt`` or ``.caption`` file, else from its ``text`` in ``metadata.jsonl`` (a line
    ``{"file_name": ..., "text": ...}`` per photo), else from the ``templates``. Its mask is the image of the same name
    in the folder ``masks``, else its opacity. Photos in a kohya subfolder such as ``10_xlo dog`` are used as often as
    its number says. Warns (TaraWarning) of other files, which are ignored.

    Raises:
        TaraError: for a missing or empty folder, a damaged image, captions or masks without a photo, or a photo
            without a mask in the folder ``masks``.
    """
    folders = photo_folders(folder)
    if not any(listed.photos for listed in folders):
        raise TaraError(f"The folder {folder} has no photos.{_nearby(folder)}")
    if sentence := ignored_sentence(folder, [path for listed in folders for path in listed.ignored]):
        warn(sentence)
    photos = [photo for listed in folders for photo in listed.photos]
    mask_files = _mask_files(masks, photos) if masked and masks is not None else {}
    read: list[Photo] = []
    for listed in folders:
        _refuse_orphans(listed.captions, listed.photos, "describes")
        table = _caption_table(listed.path, [photo.name for photo in listed.photos])
        for photo in listed.photos:
            beside = next((file for end in CAPTIONS if (file := photo.with_suffix(end)) in listed.captions), None)
            caption = table.get(photo.name) if beside is None else _caption(beside)
            image = read_image_with_alpha(photo)
            read.append(
                Photo(
                    name=photo.relative_to(folder).as_posix(),
                    image=on_white(image),
                    captions=(caption,) if caption else tuple(templates),
                    mask=_mask(photo, image, masks, mask_files) if masked else None,
                    repeats=listed.repeats,
                )
            )
    return read


def _nearby(folder: Path) -> str:
    """Advice for a folder without photos, for instance that a subfolder has some."""
    subfolders = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    within = next((path for path in subfolders if photo_folders(path)[0].photos), None)
    return f" '{within}' has some: give that folder." if within else " Put 3 to 5 photos of the concept there."


def _mask_files(folder: Path, photos: Iterable[Path]) -> dict[str, Path]:
    files = [path for listed in photo_folders(folder, "the photos' masks") for path in listed.photos]
    _refuse_orphans(files, photos, "is the mask of")
    return {path.stem: path for path in files}


def _refuse_orphans(files: Iterable[Path], photos: Iterable[Path], belongs: str) -> None:
    stems = {photo.stem for photo in photos}
    for path in files:
        if path.stem not in stems:
            raise TaraError(f"{path} {belongs} no photo of that name. Rename it, or remove it from the folder.")


def _mask(photo: Path, image: Image.Image, folder: Path | None, files: Mapping[str, Path]) -> Image.Image | None:
    """A photo's mask: its file in the folder of masks, else its opacity."""
    if photo.stem in files:
        return _read_mask(files[photo.stem], image.size)
    opaque = opacity(image)
    if opaque is None and folder is not None:
        raise TaraError(f"{photo} has no mask. Put {photo.stem}.png into {folder}, white where the subject is.")
    return opaque


def _read_mask(path: Path, size: tuple[int, int]) -> Image.Image:
    image = read_image_with_alpha(path)
    mask = opacity(image) or image.convert("L")  # a cut-out subject as mask: its opacity
    if mask.getextrema()[1] == 0:
        raise TaraError(f"{path} is entirely black. Paint the subject white.")
    if abs((mask.width / mask.height) / (size[0] / size[1]) - 1) > SHAPE_TOLERANCE:
        raise TaraError(
            f"{path} is {mask.width} × {mask.height} pixels, but its photo (upright) is {size[0]} × {size[1]}. "
            "Give a mask with the photo's aspect ratio."
        )
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


def _caption_table(folder: Path, photos: Sequence[str]) -> dict[str, str]:
    """The captions of ``metadata.jsonl`` by the photos' file names."""
    path, captions = folder / CAPTION_TABLE, dict[str, str]()
    lines = _text(path, MOST_TABLE).splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            captions[str(row["file_name"])] = str(row["text"]).strip()
        except (ValueError, KeyError, TypeError, RecursionError) as failure:
            raise TaraError(
                f'{path}, line {number} is not {{"file_name": ..., "text": ...}} ({first_line(failure)}). Correct it.'
            ) from failure
    for name in captions:
        if name not in photos:
            raise TaraError(f"{path} describes {name}, which is not in the folder. Correct the name.")
    return captions


def _caption(path: Path) -> str:
    caption = " ".join(_text(path).split())
    if not caption:
        raise TaraError(f"{path} is empty. Write the photo's caption into it, or delete it.")
    return caption


def _text(path: Path, most: int = SMALL) -> str:
    try:
        return small_text(path, most, encoding="utf-8-sig")  # Windows editors write a byte order mark
    except (OSError, UnicodeDecodeError) as failure:
        raise TaraError(f"{path} cannot be read as text ({first_line(failure)}). Save it as UTF-8.") from failure
