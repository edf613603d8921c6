"""A folder of photos becomes examples, or one clear sentence says why not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tara.data import Crop, choose_crops, crop_pixels, read_examples, read_image, size_conditioning
from tara.errors import TaraError

TEMPLATES = ("a photo of a xlo dog",)


def save_photo(path: Path, size: tuple[int, int] = (12, 8), color: str = "teal") -> Path:
    Image.new("RGB", size, color).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("b.png", "a.png", "c.jpg"):
        save_photo(tmp_path / name)
    return tmp_path


def test_photos_are_read_in_the_order_of_their_names(photos: Path):
    assert [example.name for example in read_examples(photos, TEMPLATES)] == ["a.png", "b.png", "c.jpg"]


def test_a_photos_own_caption_wins_over_the_table_and_the_table_over_the_templates(photos: Path):
    (photos / "a.txt").write_text("a xlo dog\n asleep", encoding="utf-8")
    rows = [{"file_name": "a.png", "text": "from the table"}, {"file_name": "b.png", "text": "a xlo dog runs"}]
    (photos / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    captions = [example.captions for example in read_examples(photos, TEMPLATES)]
    assert captions == [("a xlo dog asleep",), ("a xlo dog runs",), TEMPLATES]


def test_hidden_files_and_subfolders_are_left_alone(photos: Path):
    (photos / ".DS_Store").write_bytes(b"junk")
    (photos / "more").mkdir()
    assert len(read_examples(photos, TEMPLATES)) == 3


def test_a_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(TaraError, match=r"There is no folder .*nowhere"):
        read_examples(tmp_path / "nowhere", TEMPLATES)


def test_a_file_in_place_of_a_folder_is_refused(photos: Path):
    with pytest.raises(TaraError, match=r"a\.png is a file"):
        read_examples(photos / "a.png", TEMPLATES)


def test_a_folder_without_photos_is_refused(tmp_path: Path):
    with pytest.raises(TaraError, match="holds no photos"):
        read_examples(tmp_path, TEMPLATES)


def test_a_file_that_is_no_image_is_named(photos: Path):
    (photos / "notes.pdf").write_bytes(b"%PDF-1.4 no picture")
    with pytest.raises(TaraError, match=r"notes\.pdf is not a whole image"):
        read_examples(photos, TEMPLATES)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_image_is_named(tmp_path: Path, suffix: str):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = tmp_path / f"half{suffix}"
    Image.fromarray(noise).save(whole)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(TaraError, match=r"half.* is not a whole image"):
        read_examples(tmp_path, TEMPLATES)


def test_a_picture_too_large_to_be_meant_is_named(photos: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # twice as many are an error
    with pytest.raises(TaraError, match=r"a\.png is not a whole image \(Image size"):
        read_examples(photos, TEMPLATES)


def test_a_caption_without_its_photo_is_named(photos: Path):
    (photos / "rex.txt").write_text("a xlo dog", encoding="utf-8")
    with pytest.raises(TaraError, match=r"rex\.txt describes no photo"):
        read_examples(photos, TEMPLATES)


def test_a_table_row_without_its_photo_is_named(photos: Path):
    (photos / "metadata.jsonl").write_text('{"file_name": "z.png", "text": "a xlo dog"}', encoding="utf-8")
    with pytest.raises(TaraError, match=r"describes z\.png, which is not in the folder"):
        read_examples(photos, TEMPLATES)


@pytest.mark.parametrize("line", ['{"file_name": "a.png"}', "not json", "[1, 2]"])
def test_a_broken_table_row_is_named_by_its_line(photos: Path, line: str):
    (photos / "metadata.jsonl").write_text(f"\n{line}\n", encoding="utf-8")
    with pytest.raises(TaraError, match="line 2"):
        read_examples(photos, TEMPLATES)


def test_an_empty_caption_is_named(photos: Path):
    (photos / "a.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(TaraError, match=r"a\.txt is empty"):
        read_examples(photos, TEMPLATES)


def test_a_transparent_picture_lies_on_white(tmp_path: Path):
    Image.new("RGBA", (4, 4), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((1, 1)) == (255, 255, 255)


def test_a_rotated_photo_stands_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    Image.new("RGB", (12, 8)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (8, 12)


@given(
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    count=st.integers(1, 6),
    key=st.text(max_size=5),
)
def test_every_crop_lies_inside_its_picture(size: tuple[int, int], count: int, key: str):
    crops = choose_crops(size, count, key)
    assert len(crops) == count
    assert crops == choose_crops(size, count, key)
    for crop in crops:
        assert 0 <= crop.left <= crop.left + crop.side <= size[0]
        assert 0 <= crop.top <= crop.top + crop.side <= size[1]
        assert crop.side >= 1


def test_the_first_crop_is_the_largest_central_square():
    (crop,) = choose_crops((120, 80), 1, "")
    assert (crop.left, crop.top, crop.side) == (20, 0, 80)


def test_pixels_of_a_crop_at_its_own_size_are_the_pictures_own():
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    (crop,) = choose_crops((8, 8), 1, "")
    pixels = crop_pixels(Image.fromarray(values), crop, 8, flip=False)
    assert torch.equal(((pixels + 1) * 127.5).round().to(torch.uint8), torch.from_numpy(values).permute(2, 0, 1))
    assert torch.equal(crop_pixels(Image.fromarray(values), crop, 8, flip=True), pixels.flip(-1))


def test_size_conditioning_counts_the_crops_corner_in_resized_pixels():
    image = Image.new("RGB", (120, 80))
    (crop,) = choose_crops(image.size, 1, "")
    assert size_conditioning(image, crop, 40) == (80, 120, 0, 10, 40, 40)


def test_a_flipped_crop_is_one_of_the_mirrored_picture():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    crop = Crop(left=5, top=3, side=20)
    _, _, top, left, _, _ = size_conditioning(image, crop, 20, flip=True)
    flipped = crop_pixels(image, crop, 20, flip=True)
    assert torch.equal(crop_pixels(ImageOps.mirror(image), Crop(left=left, top=top, side=20), 20, flip=False), flipped)
