"""A folder of photos becomes examples, or one clear sentence says why not."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tara.errors import TaraError, TaraWarning
from tara.storage.photos import read_photos

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
    assert [example.name for example in read_photos(photos, TEMPLATES)] == ["a.png", "b.png", "c.jpg"]


def test_a_photos_own_caption_wins_over_the_table_and_the_table_over_the_templates(photos: Path):
    (photos / "a.txt").write_text("a xlo dog\n asleep", encoding="utf-8")
    rows = [{"file_name": "a.png", "text": "from the table"}, {"file_name": "b.png", "text": "a xlo dog runs"}]
    (photos / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    captions = [example.captions for example in read_photos(photos, TEMPLATES)]
    assert captions == [("a xlo dog asleep",), ("a xlo dog runs",), TEMPLATES]


def test_hidden_files_and_subfolders_are_left_alone(photos: Path):
    (photos / ".DS_Store").write_bytes(b"junk")
    (photos / "more").mkdir()
    assert len(read_photos(photos, TEMPLATES)) == 3


def test_a_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(TaraError, match=r"There is no folder .*nowhere"):
        read_photos(tmp_path / "nowhere", TEMPLATES)


def test_a_file_in_place_of_a_folder_is_refused(photos: Path):
    with pytest.raises(TaraError, match=r"a\.png is a file"):
        read_photos(photos / "a.png", TEMPLATES)


def test_a_folder_without_photos_is_refused(tmp_path: Path):
    with pytest.raises(TaraError, match="has no photos"):
        read_photos(tmp_path, TEMPLATES)


def test_a_photo_that_is_no_image_is_named(photos: Path):
    (photos / "rex.png").write_bytes(b"%PDF-1.4 no image")
    with pytest.raises(TaraError, match=r"rex\.png is not a complete image"):
        read_photos(photos, TEMPLATES)


def test_what_is_no_photo_is_ignored_with_one_line_that_counts_it(photos: Path):
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "notes.pdf", "README.txt", "walk.mp4", "walk.txt"):
        (photos / name).write_bytes(b"no image")
    with pytest.warns(TaraWarning) as warned:
        assert len(read_photos(photos, TEMPLATES)) == 3
    assert [str(one.message) for one in warned] == [
        f"7 files in {photos} are ignored, because they are no photos or captions: .DS_Store, README.txt, Thumbs.db, "
        "desktop.ini and 3 more."
    ]


def test_a_photo_without_a_known_ending_is_known_by_its_content(photos: Path):
    (photos / "a.png").rename(photos / "IMG_0001")
    assert [example.name for example in read_photos(photos, TEMPLATES)] == ["IMG_0001", "b.png", "c.jpg"]


def test_kohyas_caption_files_are_read_and_txt_wins(photos: Path):
    for name in ("a.caption", "b.caption", "b.txt"):
        (photos / name).write_text(f"a xlo dog of {name}", encoding="utf-8")
    captions = [example.captions for example in read_photos(photos, TEMPLATES)]
    assert captions == [("a xlo dog of a.caption",), ("a xlo dog of b.txt",), TEMPLATES]


def kohya_folder(root: Path, **repeats: int) -> Path:
    for words, times in repeats.items():
        folder = root / f"{times}_{words.replace('_', ' ')}"
        folder.mkdir(parents=True)
        save_photo(folder / "a.png")
    return root


def test_kohyas_numbered_subfolders_are_one_concept_whose_photos_count_so_often(tmp_path: Path):
    kohya_folder(tmp_path, xlo_dog=10, xlo_dog_portrait=4)
    examples = read_photos(tmp_path, TEMPLATES)
    assert [(one.name, one.repeats) for one in examples] == [("10_xlo dog/a.png", 5), ("4_xlo dog portrait/a.png", 2)]
    assert [one.repeats for one in read_photos(tmp_path / "10_xlo dog", TEMPLATES)] == [1]


def test_photos_beside_numbered_subfolders_are_ignored_as_kohya_does_and_counted(tmp_path: Path):
    save_photo(kohya_folder(tmp_path, xlo_dog=10) / "b.png")
    with pytest.warns(TaraWarning, match=r"1 file in .* is ignored, because .*: b\.png"):
        assert len(read_photos(tmp_path, TEMPLATES)) == 1


def test_numbered_subfolders_of_two_concepts_are_refused_by_name(tmp_path: Path):
    kohya_folder(tmp_path, xlo_dog=10, szn_cat=10)
    with pytest.raises(TaraError, match="several concepts, '10_szn cat' and '10_xlo dog'"):
        read_photos(tmp_path, TEMPLATES)


def test_a_folder_whose_photos_are_in_a_subfolder_says_so(tmp_path: Path):
    (tmp_path / "rex").mkdir()
    save_photo(tmp_path / "rex" / "a.png")
    with pytest.raises(TaraError, match=r"has no photos\. '.*rex' has some: give that folder"):
        read_photos(tmp_path, TEMPLATES)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_image_is_named(tmp_path: Path, suffix: str):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = tmp_path / f"half{suffix}"
    Image.fromarray(noise).save(whole)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(TaraError, match=r"half.* is not a complete image"):
        read_photos(tmp_path, TEMPLATES)


def test_an_image_too_large_to_be_meant_is_named(photos: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # twice as many are an error
    with pytest.raises(TaraError, match=r"a\.png is not a complete image \(Image size"):
        read_photos(photos, TEMPLATES)


def test_a_caption_without_its_photo_is_named(photos: Path):
    (photos / "rex.txt").write_text("a xlo dog", encoding="utf-8")
    with pytest.raises(TaraError, match=r"rex\.txt describes no photo"):
        read_photos(photos, TEMPLATES)


def test_a_table_row_without_its_photo_is_named(photos: Path):
    (photos / "metadata.jsonl").write_text('{"file_name": "z.png", "text": "a xlo dog"}', encoding="utf-8")
    with pytest.raises(TaraError, match=r"describes z\.png, which is not in the folder"):
        read_photos(photos, TEMPLATES)


@pytest.mark.parametrize("line", ['{"file_name": "a.png"}', "not json", "[1, 2]"])
def test_a_broken_table_row_is_named_by_its_line(photos: Path, line: str):
    (photos / "metadata.jsonl").write_text(f"\n{line}\n", encoding="utf-8")
    with pytest.raises(TaraError, match="line 2"):
        read_photos(photos, TEMPLATES)


def test_an_empty_caption_is_named(photos: Path):
    (photos / "a.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(TaraError, match=r"a\.txt is empty"):
        read_photos(photos, TEMPLATES)


def test_text_saved_by_a_windows_editor_reads_the_same(photos: Path):
    (photos / "a.txt").write_bytes("\ufeffa xlo dog\r\nasleep\r\n".encode())
    (photos / "metadata.jsonl").write_bytes('\ufeff{"file_name": "b.png", "text": "a xlo dog runs"}\r\n'.encode())
    captions = [example.captions for example in read_photos(photos, TEMPLATES)]
    assert captions == [("a xlo dog asleep",), ("a xlo dog runs",), TEMPLATES]


def save_mask(path: Path, size: tuple[int, int] = (12, 8), box: tuple[int, int, int, int] = (0, 0, 6, 8)) -> Path:
    path.parent.mkdir(exist_ok=True)
    mask = Image.new("L", size)
    mask.paste(255, box)
    mask.save(path)
    return path


def left_half(mask: Image.Image | None) -> bool:
    assert mask is not None
    return mask.size == (12, 8) and bool(np.array_equal(np.asarray(mask)[:, [0, 3, 8, 11]] > 127, [[1, 1, 0, 0]] * 8))


def test_a_mask_is_the_photos_own_file_or_else_its_opacity(photos: Path):
    masks = photos / "masks"
    for name in ("a.png", "c.jpg"):
        save_mask(masks / name)
    Image.merge("RGBA", [Image.new("L", (12, 8))] * 3 + [Image.open(masks / "a.png")]).save(photos / "b.png")
    examples = read_photos(photos, TEMPLATES, masked=True, masks=masks)
    assert [left_half(example.mask) for example in examples] == [True, True, True]
    assert examples[1].image.mode == "RGB"


def test_a_cut_out_subject_is_a_mask_and_a_smaller_mask_is_enlarged(tmp_path: Path):
    save_photo(tmp_path / "a.png", (120, 80))
    save_photo(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        alpha = Image.open(save_mask(tmp_path / "masks" / name))
        Image.merge("RGBA", [Image.new("L", (12, 8), 30)] * 3 + [alpha]).save(tmp_path / "masks" / name)
    large, small = read_photos(tmp_path, TEMPLATES, masked=True, masks=tmp_path / "masks")
    assert left_half(small.mask)
    assert large.mask is not None
    assert large.mask.size == (120, 80)


def test_photos_without_transparency_and_photos_read_unmasked_have_no_mask(photos: Path):
    Image.new("RGBA", (12, 8), (0, 0, 0, 0)).save(photos / "a.png")
    assert [example.mask is None for example in read_photos(photos, TEMPLATES, masked=True)] == [False, True, True]
    assert [example.mask for example in read_photos(photos, TEMPLATES, masks=photos / "none")] == [None] * 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda masks: (masks / "c.jpg").unlink(), r"c\.jpg has no mask.*c\.png into .*masks"),
        (lambda masks: save_mask(masks / "z.png"), r"z\.png is the mask of no photo"),
        (lambda masks: save_mask(masks / "a.png", size=(8, 12)), r"a\.png is 8 × 12 .* 12 × 8"),
        (lambda masks: save_mask(masks / "a.png", box=(0, 0, 0, 0)), r"a\.png is entirely black"),
        (lambda masks: masks.rename(masks.with_name("other")), "There is no folder .*masks"),
    ],
)
def test_masks_that_do_not_fit_their_photos_are_named(photos: Path, change: Callable[[Path], object], sentence: str):
    for name in ("a.png", "b.png", "c.jpg"):
        save_mask(photos / "masks" / name)
    change(photos / "masks")
    with pytest.raises(TaraError, match=sentence):
        read_photos(photos, TEMPLATES, masked=True, masks=photos / "masks")
