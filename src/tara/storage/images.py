"""Reads an image file as an upright sRGB image: EXIF rotation, colour profile, transparency, HEIC."""

import io
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from tara.errors import TaraError, first_line, installation

HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
"""What stands behind ``ftyp`` at the beginning of a HEIC file (ISO/IEC 23008-12)."""


PROFILED_MODES = {"RGB", "L", "CMYK"}
"""Modes whose colour profiles describe the stored channels themselves."""
PLAIN_SRGB = r"sRGB( IEC61966| built-in|$)"
"""How a profile begins to call itself that leaves every value as it is."""
ROOM = 200 * 2**20
"""Bytes of memory that an image may need beyond twice its file size: a small file must not exhaust the memory."""
BYTES_PER_PIXEL = 8  # two copies exist while it is rotated or composited over white
MOST_HEIC_PIXELS = 64_000_000  # phones take photos of 48 million; the HEIC decoder cannot read at a reduced size


def read_image(path: Path) -> Image.Image:
    """Read one image as upright RGB; transparent parts become white.

    Raises:
        TaraError: see `read_image_with_alpha`.
    """
    return on_white(read_image_with_alpha(path))


def read_image_with_alpha(path: Path) -> Image.Image:
    """Read one image upright, in sRGB: RGBA if parts of it are transparent, RGB otherwise.

    Raises:
        TaraError: when the file is missing, is not an image that Pillow knows, is cut off, is far too large, or is HEIC
            and the package for it is not installed.
    """
    try:
        with _open(path) as opened:
            upright = ImageOps.exif_transpose(opened)
        if not upright.has_transparency_data:
            return _in_srgb(upright)
        layered = upright.convert("RGBA")
        alpha, colours = layered.getchannel("A"), _in_srgb(layered.convert("RGB"))
        if alpha.getextrema()[0] != 255:
            colours.putalpha(alpha)
        return colours
    except FileNotFoundError as failure:
        raise TaraError(f"There is no image {path}. Check its path.") from failure
    # Pillow reports a broken PNG as a SyntaxError, pillow-heif a broken HEIC as an EOFError or a RuntimeError
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError, Image.DecompressionBombError) as failure:
        reason = first_line(failure)
        raise TaraError(f"{path} is not a complete image ({reason}). Replace it by a PNG or JPEG file.") from failure


def check_room(path: Path, opened: Image.Image) -> None:
    """Refuse (TaraError) an image that needs too much memory, before its pixels are read.

    A JPEG that is too large is read at 1/2, 1/4 or 1/8 of its width and height instead, if that is enough.
    """
    most = (ROOM + 2 * path.stat().st_size) // BYTES_PER_PIXEL
    for _ in range(3):
        if opened.width * opened.height > most:
            opened.draft("RGB", (opened.width // 2, opened.height // 2))  # has an effect on JPEG only
    if opened.width * opened.height > most:
        raise _too_many_pixels(path, *opened.size)


def _too_many_pixels(path: Path, width: int, height: int) -> TaraError:
    return TaraError(
        f"{path} has {width} × {height} pixels in a file of {path.stat().st_size >> 10} KiB, which needs too much "
        "memory. Reduce its size."
    )


def on_white(image: Image.Image) -> Image.Image:
    """The image as RGB, composited over white."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def opacity(image: Image.Image) -> Image.Image | None:
    """The opacity of each pixel, 0 to 255; None for an image without transparent parts."""
    return image.getchannel("A") if image.mode == "RGBA" else None


def _in_srgb(image: Image.Image) -> Image.Image:
    """An opaque image as RGB in sRGB, which bases have learned from; phones write wider spaces such as Display P3."""
    profile_bytes: object = image.info.get("icc_profile")
    if image.mode == "I;16":  # for instance 16-bit scans, whose values Pillow would clip to 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if not isinstance(profile_bytes, bytes):
        return image.convert("RGB")
    if image.mode not in PROFILED_MODES:
        image = image.convert("RGB")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(profile_bytes))
        if not re.match(PLAIN_SRGB, ImageCms.getProfileDescription(profile)):
            srgb = ImageCms.createProfile("sRGB")
            image = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError):  # a broken profile, or one for other channels; other programs ignore it too
        pass
    return image.convert("RGB")


def _open(path: Path) -> Image.Image:
    with path.open("rb") as file:
        head = file.read(12)
    # by content: phones and messengers also call a HEIC file .jpg
    if head[4:8] != b"ftyp" or head[8:12] not in HEIC_BRANDS:
        opened = Image.open(path)
        check_room(path, opened)
        return opened
    try:
        import pillow_heif
    except ImportError as missing:
        raise TaraError(
            f"{path} is a HEIC photo, which needs the package pillow-heif. Install it ({installation('heic')}), or "
            "save the photo as JPEG."
        ) from missing
    # the decoder turns the photo upright itself, and takes the rotation out of its EXIF data
    heic = pillow_heif.open_heif(path)
    if heic.size[0] * heic.size[1] > MOST_HEIC_PIXELS:
        raise _too_many_pixels(path, *heic.size)
    return heic.to_pillow()
