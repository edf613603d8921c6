"""An image's file records how the image was generated."""

import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tara.errors import TaraError
from tara.families.settings import BaseSettings
from tara.inference.provenance import Provenance, UsedFile, png_with_provenance, read_provenance, used_file
from tara.inference.settings import GenerationSettings

PROVENANCE = Provenance(
    prompt='a "xlo" dog, très joli',
    seed=2**40,
    adapters=(UsedFile(given="rex.safetensors:0.8", path="rex.safetensors", sha256="00"),),
    base=BaseSettings(base="sd15"),
    settings=GenerationSettings(steps=7, guidance_scale=3.5, negative_prompt="rain", image=Path("a.png"), strength=0.5),
)


def test_an_image_records_how_it_was_generated(tmp_path: Path):
    image = Image.new("RGB", (8, 8), (1, 2, 3))
    (tmp_path / "a.png").write_bytes(png_with_provenance(image, PROVENANCE))
    assert read_provenance(tmp_path / "a.png") == PROVENANCE
    assert Image.open(tmp_path / "a.png").convert("RGB").getpixel((4, 4)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "no whole image"),
        (b"\x89PNG\r\n\x1a\n1234", "no whole image"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_image_is_refused(tmp_path: Path, content: bytes | None, sentence: str):
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TaraError, match=sentence):
        read_provenance(path)


def test_an_image_cut_off_is_refused(tmp_path: Path):
    whole = png_with_provenance(Image.effect_noise((64, 64), 50).convert("RGB"), PROVENANCE)
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TaraError, match="no whole image"):
        read_provenance(tmp_path / "a.png")


def test_an_image_of_another_tool_is_refused(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(TaraError, match="does not store how it was generated"):
        read_provenance(tmp_path / "a.png")


def test_a_used_file_is_known_by_its_content(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"one")
    first = used_file(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"two")
    assert used_file(tmp_path / "a").sha256 != first.sha256
    with pytest.raises(TaraError, match="cannot be read"):
        used_file(tmp_path / "b")


@pytest.mark.parametrize("seed", [-1, 2**63, 2**70])
def test_a_seed_that_no_generator_takes_is_refused(tmp_path: Path, seed: int):
    path = tmp_path / "image.png"
    text = json.dumps({**PROVENANCE.model_dump(mode="json"), "seed": seed})
    marked = PngInfo()
    marked.add_text("tara", text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=marked)
    with pytest.raises(TaraError, match="it is newer, or damaged"):
        read_provenance(path)
