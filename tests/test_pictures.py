"""Pictures as cameras, phones and cut-out tools write them come out upright and on white."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tara.errors import TaraError
from tara.pictures import opacity, read_image, read_picture

QUARTERS = np.array([[[220, 20, 20], [20, 200, 20]], [[20, 20, 220], [230, 230, 230]]], dtype=np.uint8)


def quarters(size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Red, green, blue and white, so that every rotation and reflection looks different."""
    return Image.fromarray(QUARTERS).resize(size, Image.Resampling.NEAREST)


def corners(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((2, 2), Image.Resampling.BOX), dtype=float)


def test_a_transparent_picture_lies_on_white(tmp_path: Path):
    Image.new("RGBA", (4, 4), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((1, 1)) == (255, 255, 255)


def test_a_palette_with_a_transparent_colour_lies_on_white_too(tmp_path: Path):
    palette = quarters((8, 8)).quantize(4)
    palette.save(tmp_path / "clear.png", transparency=palette.getpixel((0, 0)))
    assert read_image(tmp_path / "clear.png").getpixel((1, 1)) == (255, 255, 255)


def test_an_opaque_picture_has_no_opacity_worth_naming(tmp_path: Path):
    Image.new("RGBA", (4, 4), (200, 0, 0, 255)).save(tmp_path / "opaque.png")
    assert opacity(read_picture(tmp_path / "opaque.png")) is None
    assert read_image(tmp_path / "opaque.png").getpixel((1, 1)) == (200, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_stands_upright_however_the_camera_was_held(tmp_path: Path, orientation: int):
    exif, upright = Image.Exif(), quarters()
    exif[0x0112] = orientation
    # the inverse of what the number asks for (EXIF 2.3, section 4.6.4)
    steps = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }.get(orientation, [])
    stored = upright
    for step in steps:
        stored = stored.transpose(step)
    stored.save(tmp_path / "held.jpg", exif=exif, quality=95)
    read = read_image(tmp_path / "held.jpg")
    assert read.size == upright.size
    np.testing.assert_allclose(corners(read), corners(upright), atol=12)


@pytest.mark.parametrize("name", ["IMG_0001.HEIC", "sent.jpg"])
def test_a_heic_photo_is_read_upright_whatever_its_ending(tmp_path: Path, name: str):
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = quarters().transpose(Image.Transpose.ROTATE_90)
    heif = pillow_heif.from_pillow(stored)
    heif.save(tmp_path / "photo.heic", exif=exif.tobytes(), quality=95)
    (tmp_path / "photo.heic").rename(tmp_path / name)
    read = read_image(tmp_path / name)
    assert read.size == (96, 64)
    np.testing.assert_allclose(corners(read), corners(quarters()), atol=15)


def test_a_heic_photo_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(TaraError, match=r"IMG_1\.HEIC is a HEIC photo.*tara\[heic\].*JPEG"):
        read_image(tmp_path / "IMG_1.HEIC")


def test_a_broken_heic_photo_is_named(tmp_path: Path):
    pytest.importorskip("pillow_heif")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(TaraError, match=r"IMG_1\.HEIC is not a whole image"):
        read_image(tmp_path / "IMG_1.HEIC")
