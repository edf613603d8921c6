"""Detectors and encoders: tiny ones of every kind, and the sight that is made of them, with stand-ins whose answers
are known."""

import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoModel

import tiny_models
from tara.cli import main
from tara.errors import TaraError, TaraWarning
from tara.evaluation.detectors import Detector
from tara.evaluation.encoders import ClipEncoder, VisionEncoder
from tara.evaluation.features import FeatureCache
from tara.evaluation.models import Models
from tara.evaluation.open_vocabulary import DetectorScorer, thresholds
from tara.evaluation.scores import score
from tara.evaluation.subjects import Picture, Subject
from tara.inference.provenance import Origin, png_with_origin
from training_fixtures import photo_folder

CPU = torch.device("cpu")
RED, BLUE, GREEN = (250, 10, 10), (10, 10, 250), (10, 250, 10)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model of every kind."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("dinov2", "dino", "clip", "owlv2", "grounding_dino"):
        getattr(tiny_models, name)(folder / name)
    return folder


def noise(seed: int, size: tuple[int, int] = (48, 32)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["owlv2", "grounding_dino"])
def test_a_detector_tells_boxes_inside_the_picture_the_surest_first(tiny: Path, name: str):
    detector = Detector(str(tiny / name), CPU, confidence=0.0)
    found = [detector.find(image, "dog") for image in (noise(0), noise(1, (32, 64)), noise(2, (64, 64)))]
    assert sum(map(len, found)) > 0
    for boxes in found:
        assert boxes.shape[1] == 5
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] < boxes[:, 2:4]).all()
        assert (boxes[:, 2:4] <= 1).all()
        assert (np.diff(boxes[:, 4]) <= 0).all()
    assert len(Detector(str(tiny / name), CPU, confidence=1.0).find(noise(0), "dog")) == 0


def test_an_encoder_tells_the_class_token_at_length_1(tiny: Path):
    encoder = VisionEncoder(str(tiny / "dinov2"), CPU)
    vectors = encoder.images([noise(0), noise(1)])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    processor = tiny_models.image_processor("Bit").from_pretrained(tiny / "dinov2")
    model = AutoModel.from_pretrained(tiny / "dinov2").eval()
    with torch.no_grad():
        plain = model(**processor(noise(1), return_tensors="pt")).pooler_output[0].double()
    np.testing.assert_allclose(vectors[1], (plain / plain.norm()).numpy(), atol=1e-5)


def test_clip_tells_pictures_and_sentences_in_one_space(tiny: Path):
    encoder = ClipEncoder(str(tiny / "clip"), CPU)
    images, texts = encoder.images([noise(0), noise(1)]), encoder.texts(["a dog", "a dog on a beach " * 40])
    assert images.shape == texts.shape == (2, 16)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, rtol=1e-5)


def test_the_first_dino_is_read_without_its_pooler(tiny: Path):
    assert VisionEncoder(str(tiny / "dino"), CPU).images([noise(0)]).shape == (1, 32)


@pytest.mark.parametrize(
    ("class_word", "name", "said"),
    [
        (VisionEncoder, "facebook/dinov2-base", "`hf download facebook/dinov2-base`"),
        (VisionEncoder, "clip", "is of the type clip. Give a model of one of these: dinov2"),
        (ClipEncoder, "dinov2", "is of the type dinov2. Give a model of one of these: clip"),
        (Detector, "dinov2", "Give a model of one of these: owlv2, owlvit, grounding-dino"),
        (VisionEncoder, "nowhere", "There is no model"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_with_what_to_do(
    tiny: Path, kind: Callable[..., object], name: str, said: str
):
    with pytest.raises(TaraError, match=said):
        kind(name if "/" in name else str(tiny / name), CPU)


def test_a_model_that_lacks_weights_is_refused(tiny: Path, tmp_path: Path):
    folder = shutil.copytree(tiny / "dinov2", tmp_path / "torn")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}), encoding="utf-8")
    with pytest.raises(TaraError, match=r"is not whole: it lacks 'encoder\.layer\.1\."):
        VisionEncoder(str(folder), CPU)


def test_features_are_computed_once_even_when_asked_for_twice_at_a_time(tmp_path: Path):
    asked: list[int] = []

    def compute(images: list[Image.Image]) -> list[NDArray[np.float32]]:
        asked.append(len(images))
        return [np.asarray(image, dtype=np.float32).mean((0, 1)) for image in images]

    pictures = [noise(0), noise(1), noise(0), noise(2)]
    first = FeatureCache(tmp_path, 2)("model", pictures, compute)
    again = FeatureCache(tmp_path, 2)("model", pictures, compute)
    assert asked == [2, 1]
    for one, other, image in zip(first, again, pictures, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(one, np.asarray(image).mean((0, 1)), rtol=1e-5)
    FeatureCache(tmp_path, 2)("another model", pictures[:1], compute)
    next(tmp_path.rglob("*.npy")).write_bytes(b"torn")
    with warnings.catch_warnings():  # the torn one may be the other model's
        warnings.simplefilter("ignore", TaraWarning)
        assert len(FeatureCache(tmp_path, 4)("model", pictures, compute)) == 4
    assert sum(asked) in (4, 5)


def test_a_flipped_bit_in_the_cache_is_told_and_the_features_are_made_anew(tmp_path: Path):
    asked: list[int] = []

    def compute(images: list[Image.Image]) -> list[NDArray[np.float32]]:
        asked.append(len(images))
        return [np.asarray(image, dtype=np.float32).mean((0, 1)) for image in images]

    (first,) = FeatureCache(tmp_path, 2)("model", [noise(0)], compute)
    path = next(tmp_path.rglob("*.npy"))
    whole = path.read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 40, len(whole) - 1):  # the head, the numbers, the digest
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.warns(TaraWarning, match=r"\.npy' in the cache was damaged"):
            (again,) = FeatureCache(tmp_path, 2)("model", [noise(0)], compute)
        np.testing.assert_array_equal(first, again)
        assert path.read_bytes() == whole
    assert len(asked) == 5


class Halves:
    """A detector that sees a dog in the left half of every picture and a cat in the right one."""

    key = "halves"

    def find(self, image: Image.Image, kind: str) -> NDArray[np.float32]:
        assert image.width == 2 * image.height
        left, right = [0.0, 0.0, 0.5, 1.0, 0.9], [0.5, 0.0, 1.0, 1.0, 0.8]
        boxes = {"dog": [left], "cat": [right], "toy": [left, right]}.get(kind, [])
        return np.array(boxes, dtype=np.float32).reshape(-1, 5)


class Colours:
    """An encoder that sees the colour in the middle of a picture."""

    key = "colours"

    def images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        middles = [image.getpixel((image.width // 2, image.height // 2)) for image in images]
        vectors = np.array(middles, dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def scorer(tmp_path: Path, *subjects: tuple[str, str, tuple[int, int, int]], **options: Any) -> DetectorScorer:
    models = Models(detector=Halves(), dino=Colours(), names={})  # type: ignore[arg-type]
    made: list[Subject] = []
    for word, kind, colour in subjects:
        photos = tmp_path / word
        photos.mkdir()
        for number in range(2):
            Image.new("RGB", (64, 32), colour).save(photos / f"{number}.png")
        made.append(Subject(rare_word=word, class_word=kind, photos=photos))
    return DetectorScorer(models, made, FeatureCache(tmp_path / "cache", 4), **options)


def halves(left: tuple[int, int, int], right: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGB", (64, 32), left)
    image.paste(right, (32, 0, 64, 32))
    return image


def looked(seeing: DetectorScorer, image: Image.Image) -> Any:
    asked = Picture(path=Path("x"), series="", prompt="", seed=0, subjects=tuple(seeing.thresholds))
    (seen,) = seeing.look([asked], [image])
    return score(seen)


def test_subjects_are_found_by_class_and_told_by_their_photos(tmp_path: Path):
    seeing = scorer(tmp_path, ("xlo", "dog", RED), ("szn", "cat", BLUE))
    right, swapped = looked(seeing, halves(RED, BLUE)), looked(seeing, halves(BLUE, RED))
    assert right.success
    assert right.values()["identity"] == {0: pytest.approx(1), 1: pytest.approx(1)}
    assert right.values()["leakage"] == {0: 0.0, 1: 0.0}
    assert not swapped.success
    assert [one.looks_like for one in swapped.subjects] == [1, 0]
    assert swapped.values()["leakage"][0] > 0.8


def test_two_of_one_class_are_told_apart_wherever_they_stand(tmp_path: Path):
    seeing = scorer(tmp_path, ("xlo", "toy", RED), ("szn", "toy", BLUE))
    found = looked(seeing, halves(BLUE, RED))
    assert found.success
    assert [one.box[0] for one in found.subjects if one.box] == [0.5, 0.0]
    assert not looked(seeing, halves(BLUE, BLUE)).success


def test_what_the_detector_does_not_find_is_absent(tmp_path: Path):
    found = looked(scorer(tmp_path, ("xlo", "dog", RED), ("kib", "house", BLUE)), halves(RED, BLUE))
    assert [one.present for one in found.subjects] == [True, False]


def test_the_threshold_is_half_way_between_own_and_other_photos(tmp_path: Path):
    rng = np.random.default_rng(0)
    photos = [rng.normal(size=(count, 5)) for count in (3, 4, 1)]
    photos = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in photos]
    own = [float(np.dot(a, b)) for i, a in enumerate(photos[0]) for j, b in enumerate(photos[0]) if i != j]
    others = [np.mean([float(np.dot(a, b)) for a in photos[0] for b in photos[n]]) for n in (1, 2)]
    assert thresholds(photos)[0] == pytest.approx((np.mean(own) + max(others)) / 2)
    assert thresholds(photos[2:]) == [0.5]
    given = scorer(tmp_path, ("xlo", "dog", RED), same_subject=0.25)
    assert list(given.thresholds.values()) == [0.25]


def test_a_folder_is_scored_with_real_models_and_a_second_time_from_what_is_kept(tiny: Path, here: Path):
    photo_folder(here / "rex", seed=1)
    photo_folder(here / "tom", seed=2)
    (here / "out").mkdir()
    prompt = "a xlo dog and a szn cat"
    for seed in range(2):
        png = png_with_origin(noise(seed), Origin(prompt=prompt, seed=seed))
        (here / "out" / f"{seed}.png").write_bytes(png)
    command = ["evaluate", "folder", "out", "-r", "xlo dog=rex", "-r", "szn cat=tom", "--confidence", "0"]
    command += ["--detector", str(tiny / "owlv2"), "--dino", str(tiny / "dinov2")]
    encoders = ["--clip", str(tiny / "clip"), "--plain-dino", str(tiny / "dino")]
    assert main([*command, *encoders]) == 0
    found = json.loads((here / "evaluation" / "results.json").read_text(encoding="utf-8"))
    figures = found["series"][0]["figures"]
    wanted = {"identity", "identity_clip_i", "leakage", "clip_t", "plain_clip_t", "plain_clip_i", "plain_dino"}
    assert wanted <= {name for name, figure in figures.items() if figure}
    kept = {path: path.stat().st_mtime_ns for path in (here / "evaluation" / "cache").rglob("*.npy")}
    assert main([*command, *encoders]) == 0
    assert {path: path.stat().st_mtime_ns for path in (here / "evaluation" / "cache").rglob("*.npy")} == kept
    again = json.loads((here / "evaluation" / "results.json").read_text(encoding="utf-8"))
    assert again["series"] == found["series"]
    assert main([*command, "--plain-dino", "none", "--clip", "none", "--out", "less"]) == 0
    less = json.loads((here / "less" / "results.json").read_text(encoding="utf-8"))["series"][0]["figures"]
    assert wanted & set(less) == {"identity", "leakage"}


def test_a_missing_model_is_told_before_anything_is_drawn_or_written(here: Path, refused: Any):
    photo_folder(here / "rex", seed=1)
    (here / "out").mkdir()
    (here / "out" / "0.png").write_bytes(png_with_origin(noise(0), Origin(prompt="a xlo dog", seed=0)))
    (here / "list.json").write_text('[{"file": "out/0.png", "prompt": "a xlo dog"}]', encoding="utf-8")
    said = refused("evaluate", "folder", "list.json", "-r", "xlo dog=rex")
    assert "`hf download google/owlv2-base-patch16-ensemble`" in said
    assert not (here / "evaluation").exists()
