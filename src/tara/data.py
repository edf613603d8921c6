"""A folder of photos as examples: upright RGB pictures, their captions, and square crops as pixels."""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from tara.errors import TaraError

CAPTION_TABLE = "metadata.jsonl"
SMALLEST_CROP = 0.8  # of the photo's shorter side: a subject stays recognisable


@dataclass(frozen=True, kw_only=True)
class Example:
    """One photo: its file name, the RGB picture and the captions that it may be trained with."""

    name: str
    image: Image.Image
    captions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A square part of a picture, in the picture's own pixels."""

    left: int
    top: int
    side: int


def read_examples(folder: Path, templates: Sequence[str]) -> list[Example]:
    """Read every photo of a folder, sorted by name, with its captions.

    A photo's captions are, the first that exists: the ``.txt`` file of its name, its ``text`` in ``metadata.jsonl``
    (a line ``{"file_name": ..., "text": ...}`` per photo), the ``templates``.

    Raises:
        TaraError: for a missing or empty folder, a file that is not a whole image (by name), captions without a photo.
    """
    photos, texts = _listing(folder)
    table = _caption_table(folder)
    _refuse_orphans(folder, photos, [text.stem for text in texts], table)
    examples: list[Example] = []
    for photo in photos:
        own = photo.with_suffix(".txt")
        found = _caption(own) if own in texts else table.get(photo.name)
        examples.append(
            Example(name=photo.name, image=read_image(photo), captions=(found,) if found else tuple(templates))
        )
    return examples


def read_image(path: Path) -> Image.Image:
    """Read one picture as upright RGB; transparent parts become white.

    Raises:
        TaraError: when the file is missing, is not an image that Pillow knows, is cut off or is far too large.
    """
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened)
            if upright.has_transparency_data:
                layered = upright.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
            return upright.convert("RGB")
    except FileNotFoundError as failure:
        raise TaraError(f"There is no picture {path}. Check its path.") from failure
    # Pillow reports a broken PNG as a SyntaxError
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as failure:
        raise TaraError(
            f"{path} is not a whole image ({_first_line(failure)}). Give a PNG or JPEG file in its place."
        ) from failure


def choose_crops(size: tuple[int, int], count: int, key: str) -> list[Crop]:
    """Choose square crops of a picture of (width, height): the largest central one, then smaller ones anywhere.

    The choice is a function of ``size``, ``count`` and ``key`` alone.
    """
    width, height = size
    shorter = min(size)
    crops = [Crop(left=(width - shorter) // 2, top=(height - shorter) // 2, side=shorter)]
    chance = random.Random(key)
    for _ in range(count - 1):
        side = round(shorter * chance.uniform(SMALLEST_CROP, 1.0))
        crops.append(Crop(left=chance.randint(0, width - side), top=chance.randint(0, height - side), side=side))
    return crops


def crop_pixels(image: Image.Image, crop: Crop, resolution: int, flip: bool) -> Float[Tensor, "3 height width"]:
    """Cut out a crop, bring it to ``resolution`` pixels a side (Lanczos) and scale the values to -1..1."""
    box = (crop.left, crop.top, crop.left + crop.side, crop.top + crop.side)
    square = image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box)
    values = np.asarray(ImageOps.mirror(square) if flip else square, dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1.0).permute(2, 0, 1).contiguous()


def size_conditioning(
    image: Image.Image, crop: Crop, resolution: int, flip: bool = False
) -> tuple[int, int, int, int, int, int]:
    """What SDXL is told of a crop: original height, width; top, left in the resized picture; target height, width.

    A flipped crop is one of the mirrored picture. Source: SDXL, arXiv 2307.01952, section 2.2.
    """
    zoom = resolution / crop.side
    left = image.width - crop.left - crop.side if flip else crop.left
    return (image.height, image.width, round(crop.top * zoom), round(left * zoom), resolution, resolution)


def _listing(folder: Path) -> tuple[list[Path], list[Path]]:
    """The photos and the caption files of a folder; hidden files and subfolders are left alone."""
    if not folder.exists():
        raise TaraError(f"There is no folder {folder}. Give the folder that holds the concept's photos.")
    if not folder.is_dir():
        raise TaraError(f"{folder} is a file. Give the folder that holds the concept's photos.")
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as failure:
        raise TaraError(f"The folder {folder} cannot be read ({failure.strerror}). Check its permissions.") from failure
    photos = [path for path in files if path.suffix != ".txt" and path.name != CAPTION_TABLE]
    if not photos:
        raise TaraError(f"The folder {folder} holds no photos. Put 3 to 5 photos of the concept there.")
    return photos, [path for path in files if path.suffix == ".txt"]


def _caption_table(folder: Path) -> dict[str, str]:
    path = folder / CAPTION_TABLE
    captions: dict[str, str] = {}
    if not path.exists():
        return captions
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            captions[str(row["file_name"])] = str(row["text"]).strip()
        except (json.JSONDecodeError, KeyError, TypeError) as failure:
            raise TaraError(
                f'{path}, line {number} is not {{"file_name": ..., "text": ...}} ({_first_line(failure)}). Correct it.'
            ) from failure
    return captions


def _refuse_orphans(folder: Path, photos: Sequence[Path], texts: Iterable[str], table: Iterable[str]) -> None:
    """Captions that belong to no photo are a slip of the pen: count what matched, or fail."""
    stems, names = {photo.stem for photo in photos}, {photo.name for photo in photos}
    for name in [f"{stem}.txt" for stem in texts if stem not in stems]:
        raise TaraError(f"{folder / name} describes no photo of that name. Rename it, or take it out of the folder.")
    for name in [name for name in table if name not in names]:
        raise TaraError(f"{folder / CAPTION_TABLE} describes {name}, which is not in the folder. Correct the name.")


def _caption(path: Path) -> str:
    caption = " ".join(_text(path).split())
    if not caption:
        raise TaraError(f"{path} is empty. Write the photo's caption into it, or delete it.")
    return caption


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise TaraError(f"{path} cannot be read as text ({_first_line(failure)}). Save it as UTF-8.") from failure


def _first_line(failure: Exception) -> str:
    return (str(failure).splitlines() or [type(failure).__name__])[0]
