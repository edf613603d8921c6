"""Detectors and encoders, tiny ones of every type, and the cache of their outputs."""

import json
import shutil
import warnings
from collections.abc import Callable
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
from tara.evaluation.features import FeatureCache
from tara.evaluation.models import ClipEncoder, Detector, VisionEncoder
from tara.families.settings import BaseSettings
from tara.inference.provenance import Provenance, png_with_provenance
from training_fixtures import photo_folder

CPU = torch.device("cpu")
ON_TINY = BaseSettings(base="tiny")


def noise(seed: int, size: tuple[int, int] = (48, 32)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["owlv2", "grounding_dino"])
def test_a_detector_returns_boxes_inside_the_image_by_descending_confidence(tiny: Path, name: str):
    detector = Detector(str(tiny / name), CPU, confidence=0.0)
    found = [detector.detect(image, "dog") for image in (noise(0), noise(1, (32, 64)), noise(2, (64, 64)))]
    assert sum(map(len, found)) > 0
    for boxes in found:
        assert boxes.shape[1] == 5
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] < boxes[:, 2:4]).all()
        assert (boxes[:, 2:4] <= 1).all()
        assert (np.diff(boxes[:, 4]) <= 0).all()
    assert len(Detector(str(tiny / name), CPU, confidence=1.0).detect(noise(0), "dog")) == 0


def test_an_encoder_returns_the_class_token_with_length_1(tiny: Path):
    encoder = VisionEncoder(str(tiny / "dinov2"), CPU)
    vectors = encoder.images([noise(0), noise(1)])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    processor = tiny_models.image_processor("Bit").from_pretrained(tiny / "dinov2")
    model = AutoModel.from_pretrained(tiny / "dinov2").eval()
    with torch.no_grad():
        plain = model(**processor(noise(1), return_tensors="pt")).pooler_output[0].double()
    np.testing.assert_allclose(vectors[1], (plain / plain.norm()).numpy(), atol=1e-5)


def test_clip_maps_images_and_texts_to_one_space(tiny: Path):
    encoder = ClipEncoder(str(tiny / "clip"), CPU)
    images, texts = encoder.images([noise(0), noise(1)]), encoder.texts(["a dog", "a dog on a beach " * 40])
    assert images.shape == texts.shape == (2, 16)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, rtol=1e-5)


def test_the_first_dino_is_read_without_its_pooler(tiny: Path):
    assert VisionEncoder(str(tiny / "dino"), CPU).images([noise(0)]).shape == (1, 32)


@pytest.mark.parametrize(
    ("model", "name", "said"),
    [
        (VisionEncoder, "facebook/dinov2-base", "`hf download facebook/dinov2-base`"),
        (VisionEncoder, "clip", "has the model type clip. Give a model of one of these types: dinov2"),
        (ClipEncoder, "dinov2", "has the model type dinov2. Give a model of one of these types: clip"),
        (Detector, "dinov2", "Give a model of one of these types: owlv2, owlvit, grounding-dino"),
        (VisionEncoder, "nowhere", "There is no model"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_with_what_to_do(
    tiny: Path, model: Callable[..., object], name: str, said: str
):
    with pytest.raises(TaraError, match=said):
        model(name if "/" in name else str(tiny / name), CPU)


def test_a_model_that_lacks_weights_is_refused(tiny: Path, tmp_path: Path):
    folder = shutil.copytree(tiny / "dinov2", tmp_path / "torn")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}), encoding="utf-8")
    with pytest.raises(TaraError, match=r"is incomplete: it lacks 'encoder\.layer\.1\."):
        VisionEncoder(str(folder), CPU)


def test_features_are_computed_once_even_when_requested_twice_at_a_time(tmp_path: Path):
    asked: list[int] = []

    def compute(images: list[Image.Image]) -> list[NDArray[np.float32]]:
        asked.append(len(images))
        return [np.asarray(image, dtype=np.float32).mean((0, 1)) for image in images]

    images = [noise(0), noise(1), noise(0), noise(2)]
    first = FeatureCache(tmp_path, 2)("model", images, compute)
    again = FeatureCache(tmp_path, 2)("model", images, compute)
    assert asked == [2, 1]
    for one, other, image in zip(first, again, images, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(one, np.asarray(image).mean((0, 1)), rtol=1e-5)
    FeatureCache(tmp_path, 2)("another model", images[:1], compute)
    next(tmp_path.rglob("*.npy")).write_bytes(b"torn")
    with warnings.catch_warnings():  # the torn one may be the other model's
        warnings.simplefilter("ignore", TaraWarning)
        assert len(FeatureCache(tmp_path, 4)("model", images, compute)) == 4
    assert sum(asked) in (4, 5)


def test_a_flipped_bit_in_the_cache_gives_a_warning_and_the_features_are_computed_again(tmp_path: Path):
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


def test_a_folder_is_scored_with_real_models_and_a_second_time_from_the_cache(tiny: Path, here: Path):
    photo_folder(here / "rex", seed=1)
    photo_folder(here / "tom", seed=2)
    (here / "out").mkdir()
    prompt = "a xlo dog and a szn cat"
    for seed in range(2):
        png = png_with_provenance(noise(seed), Provenance(base=ON_TINY, prompt=prompt, seed=seed))
        (here / "out" / f"{seed}.png").write_bytes(png)
    command = ["evaluate", "folder", "out", "-r", "xlo dog=rex", "-r", "szn cat=tom", "--confidence", "0"]
    command += ["--detector", str(tiny / "owlv2"), "--dino", str(tiny / "dinov2")]
    encoders = ["--clip", str(tiny / "clip"), "--plain-dino", str(tiny / "dino")]
    assert main([*command, *encoders]) == 0
    found = json.loads((here / "evaluation" / "results.json").read_text(encoding="utf-8"))
    metrics = found["series"][0]["metrics"]
    wanted = {"identity", "identity_clip_i", "leakage", "clip_t", "plain_clip_t", "plain_clip_i", "plain_dino"}
    assert wanted <= set(metrics)
    kept = {path: path.stat().st_mtime_ns for path in (here / "evaluation" / "cache").rglob("*.npy")}
    assert main([*command, *encoders]) == 0
    assert {path: path.stat().st_mtime_ns for path in (here / "evaluation" / "cache").rglob("*.npy")} == kept
    again = json.loads((here / "evaluation" / "results.json").read_text(encoding="utf-8"))
    assert again["series"] == found["series"]
    assert main([*command, "--plain-dino", "none", "--clip", "none", "--out", "less"]) == 0
    less = json.loads((here / "less" / "results.json").read_text(encoding="utf-8"))["series"][0]["metrics"]
    assert wanted & set(less) == {"identity", "leakage"}


def test_a_missing_model_is_reported_before_anything_is_generated_or_written(here: Path, refused: Any):
    photo_folder(here / "rex", seed=1)
    (here / "out").mkdir()
    (here / "out" / "0.png").write_bytes(
        png_with_provenance(noise(0), Provenance(base=ON_TINY, prompt="a xlo dog", seed=0))
    )
    (here / "list.json").write_text('[{"file": "out/0.png", "prompt": "a xlo dog"}]', encoding="utf-8")
    said = refused("evaluate", "folder", "list.json", "-r", "xlo dog=rex")
    assert "`hf download google/owlv2-base-patch16-ensemble`" in said
    assert not (here / "evaluation").exists()
