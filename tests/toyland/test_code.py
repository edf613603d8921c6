"""The patch code keeps what a picture shows, and the autoencoder has its shape."""

import numpy as np
import pytest
import torch

from toyland.autoencoder import (
    AutoencoderRecipe,
    build_autoencoder,
    psnr,
    reconstruct,
    to_pixels,
    train_autoencoder,
)
from toyland.code import CHANNELS, PATCH, PatchCode
from toyland.render import SIZE, render
from toyland.scenes import scene_number


def _pictures(seed: int, count: int) -> np.ndarray:
    return np.stack([np.asarray(render(scene_number(seed, index))) for index in range(count)])


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return _pictures(21, 200)


@pytest.fixture(scope="module")
def code(pictures: np.ndarray) -> PatchCode:
    return PatchCode.fit(pictures)


@pytest.fixture(scope="module")
def held_out() -> torch.Tensor:
    return to_pixels(_pictures(22, 64))


def test_held_out_images_come_back_above_28_decibels(code: PatchCode, held_out: torch.Tensor) -> None:
    assert psnr(code.decode(code.encode(held_out)), held_out) > 28


def test_encoding_undoes_decoding(code: PatchCode) -> None:
    latents = torch.randn(3, CHANNELS, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(code.encode(code.decode(latents)), latents, rtol=1e-3, atol=1e-4)


def test_decoding_gives_the_best_image_that_the_latents_allow(code: PatchCode, held_out: torch.Tensor) -> None:
    residue = held_out - code.decode(code.encode(held_out))
    # the error of an orthogonal projection holds nothing that the code could still express
    assert float((code.encode(code.decode(code.encode(held_out)) + residue) - code.encode(held_out)).abs().max()) < 1e-3
    expressed = torch.einsum("nphw,pc->nchw", torch.nn.functional.pixel_unshuffle(residue, PATCH), code.basis)
    assert float(expressed.abs().max()) < 1e-3


def test_latents_have_unit_mean_variance_and_zero_mean(code: PatchCode, pictures: np.ndarray) -> None:
    latents = code.encode(to_pixels(pictures))
    assert latents.shape == (len(pictures), CHANNELS, SIZE // PATCH, SIZE // PATCH)
    assert float(latents.var((0, 2, 3)).mean()) == pytest.approx(1, rel=1e-3)
    assert float(latents.mean((0, 2, 3)).abs().max()) < 1e-3


def test_a_code_survives_its_tensors(code: PatchCode, held_out: torch.Tensor) -> None:
    again = PatchCode(**code.tensors()).to(torch.device("cpu"))
    assert torch.equal(again.encode(held_out), code.encode(held_out))


def test_psnr_is_that_of_the_definition() -> None:
    first, second = torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 0.02)
    assert psnr(first, second) == pytest.approx(20 * np.log10(2 / 0.02), abs=1e-4)


def test_pixels_reach_from_minus_one_to_one() -> None:
    ends = to_pixels(np.array([[[[0, 0, 0], [255, 255, 255]]]], np.uint8))
    assert ends.shape == (1, 3, 1, 2)
    assert ends.flatten().tolist() == [-1, 1] * 3


def test_the_autoencoder_learns_the_code(code: PatchCode, pictures: np.ndarray) -> None:
    torch.manual_seed(0)
    model = build_autoencoder()
    recipe = AutoencoderRecipe(steps=8, batch_size=4)
    pixels = to_pixels(pictures[:4])

    def miss() -> float:
        with torch.no_grad():
            return float((model.encode(pixels).latent_dist.mean - code.encode(pixels)).square().mean())

    before = miss()
    losses = [float(loss) for _, loss in train_autoencoder(pictures, code, recipe, model, torch.device("cpu"))]
    assert len(losses) == recipe.steps
    assert miss() < before
    assert reconstruct(model, pixels).shape == pixels.shape
    assert model.config["scaling_factor"] == 1
