"""Pictures as cameras, phones and cut-out tools write them come out upright and on white."""

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from tara.errors import TaraError
from tara.storage.images import opacity, read_image, read_image_with_alpha

QUARTERS = np.array([[[220, 20, 20], [20, 200, 20]], [[20, 20, 220], [230, 230, 230]]], dtype=np.uint8)


def quarters(size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Red, green, blue and white, so that every rotation and reflection looks different."""
    return Image.fromarray(QUARTERS).resize(size, Image.Resampling.NEAREST)


def corners(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((2, 2), Image.Resampling.BOX), dtype=float)


def test_a_transparent_image_lies_on_white(tmp_path: Path):
    Image.new("RGBA", (4, 4), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((1, 1)) == (255, 255, 255)


def test_a_palette_with_a_transparent_colour_lies_on_white_too(tmp_path: Path):
    palette = quarters((8, 8)).quantize(4)
    palette.save(tmp_path / "clear.png", transparency=palette.getpixel((0, 0)))
    assert read_image(tmp_path / "clear.png").getpixel((1, 1)) == (255, 255, 255)


def test_an_opaque_image_has_no_opacity_worth_naming(tmp_path: Path):
    Image.new("RGBA", (4, 4), (200, 0, 0, 255)).save(tmp_path / "opaque.png")
    assert opacity(read_image_with_alpha(tmp_path / "opaque.png")) is None
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
    with pytest.raises(TaraError, match=r"IMG_1\.HEIC is a HEIC photo.*tara-diffusion\[heic\].*JPEG"):
        read_image(tmp_path / "IMG_1.HEIC")


def test_a_broken_heic_photo_is_named(tmp_path: Path):
    pytest.importorskip("pillow_heif")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(TaraError, match=r"IMG_1\.HEIC is not a complete image"):
        read_image(tmp_path / "IMG_1.HEIC")


def display_p3() -> bytes:
    """The profile that iPhones embed: sRGB's white and curve, and the primaries of DCI-P3 (here with gamma 2.2)."""
    primaries = {  # XYZ relative to D50 (SMPTE EG 432-1, Bradford-adapted)
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
        b"wtpt": (0.96420, 1.0, 0.82491),
    }
    parts = {
        name: b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in xyz))
        for name, xyz in primaries.items()
    }
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(2.2 * 256)) + bytes(2)
    parts |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    text = "Display P3".encode("utf-16-be")
    parts[b"desc"] = b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    table, data, start = b"", b"", 128 + 4 + 12 * len(parts)
    for name, part in parts.items():
        table += name + struct.pack(">II", start + len(data), len(part))
        data += part + bytes(-len(part) % 4)
    body = struct.pack(">I", len(parts)) + table + data
    header = struct.pack(">I4sI4s4s4s12x4s", 128 + len(body), bytes(4), 0x04000000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    white = struct.pack(">3i", *(round(value * 65536) for value in primaries[b"wtpt"]))
    return header.ljust(68, b"\0") + white + bytes(48) + body


@pytest.mark.parametrize("name", ["photo.png", "photo.heic"])
def test_a_phones_wide_colours_become_those_of_srgb(tmp_path: Path, name: str):
    colour = (200, 90, 60)
    photo: Any = Image.new("RGB", (64, 64), colour)
    photo.info["icc_profile"] = display_p3()
    if name.endswith(".heic"):
        photo = pytest.importorskip("pillow_heif").from_pillow(photo)
    photo.save(tmp_path / name, quality=100)
    # linear Display P3 to linear sRGB (CSS Color 4), with gamma 2.2 for both
    matrix = np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]])
    wanted = 255 * (matrix @ (np.array(colour) / 255) ** 2.2) ** (1 / 2.2)
    found = read_image(tmp_path / name).getpixel((32, 32))
    np.testing.assert_allclose(found, wanted, atol=8)
    assert found[0] > colour[0] + 5


def test_what_is_transparent_stays_so_while_its_colours_are_brought_to_srgb(tmp_path: Path):
    image = Image.new("RGBA", (4, 4), (200, 90, 60, 128))
    image.save(tmp_path / "cut.png", icc_profile=display_p3())
    red, _, _, alpha = read_image_with_alpha(tmp_path / "cut.png").getpixel((1, 1))
    assert alpha == 128
    assert red > 205


@pytest.mark.parametrize("profile", [b"no profile at all", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))])
def test_a_profile_that_does_not_fit_an_image_is_left_alone(tmp_path: Path, profile: object):
    content = profile if isinstance(profile, bytes) else profile.tobytes()
    Image.new("RGB", (4, 4), (200, 90, 60)).save(tmp_path / "odd.png", icc_profile=content)
    assert read_image(tmp_path / "odd.png").getpixel((1, 1)) == (200, 90, 60)


def test_an_image_that_says_it_is_srgb_keeps_every_value(tmp_path: Path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    quarters().save(tmp_path / "plain.png", icc_profile=srgb)
    assert np.array_equal(np.asarray(read_image(tmp_path / "plain.png")), np.asarray(quarters()))


def test_a_scan_of_16_bits_is_not_cut_off_at_white(tmp_path: Path):
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(tmp_path / "scan.png")
    assert read_image(tmp_path / "scan.png").getpixel((1, 1)) == (156, 156, 156)
