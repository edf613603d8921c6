"""Training images are crops of their photos, in their own shape or square, and SDXL gets the crop's place."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tara.training.latents import Crop, bucket_for, choose_crops, crop_mask, crop_pixels, size_conditioning

sizes = st.tuples(st.integers(1, 400), st.integers(1, 400))
multiples = st.sampled_from([(512, 64), (256, 64), (1024, 32), (32, 4), (64, 64)])


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@given(size=sizes, count=st.integers(1, 6), key=st.text(max_size=5), target=sizes)
def test_every_crop_lies_inside_its_image(size: tuple[int, int], count: int, key: str, target: tuple[int, int]):
    crops = choose_crops(size, count, key, target)
    assert len(crops) == count
    assert crops == choose_crops(size, count, key, target)
    for crop in crops:
        left, top, right, bottom = crop.box
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]


@given(size=sizes, count=st.integers(1, 6), resolution=st.integers(8, 2048))
def test_crops_for_squares_are_square(size: tuple[int, int], count: int, resolution: int):
    crops = choose_crops(size, count, "a.png", (resolution, resolution))
    assert crops == choose_crops(size, count, "a.png")
    assert all(crop.width == crop.height for crop in crops)
    assert crops[0].width == min(size)


def test_the_first_crop_is_the_largest_central_one_of_the_targets_shape():
    assert choose_crops((120, 80), 1, "") == [Crop(left=20, top=0, width=80, height=80)]
    assert choose_crops((120, 80), 1, "", (512, 512)) == [Crop(left=20, top=0, width=80, height=80)]
    assert choose_crops((120, 80), 1, "", (64, 32)) == [Crop(left=0, top=10, width=120, height=60)]


@given(size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)), base=multiples)
def test_a_bucket_has_sides_that_the_base_takes_and_about_the_squares_pixels(size: tuple[int, int], base: tuple):
    resolution, multiple = base
    width, height = bucket_for(size, resolution, multiple)
    assert width % multiple == height % multiple == 0
    assert max(width, height) <= 2 * min(width, height)
    assert abs(width * height / resolution**2 - 1) <= 1 / 8
    assert bucket_for(size[::-1], resolution, multiple) == (height, width)


@given(side=st.integers(1, 5000), base=multiples)
def test_a_square_photo_is_trained_at_the_resolution_itself(side: int, base: tuple[int, int]):
    assert bucket_for((side, side), *base) == (base[0], base[0])


@given(ratio=st.floats(0.55, 1.8))
def test_a_photo_of_common_shape_loses_little_to_its_bucket(ratio: float):
    size = (round(3000 * ratio), 3000)
    (crop,) = choose_crops(size, 1, "", bucket_for(size, 512, 64))
    assert crop.width * crop.height > 0.85 * size[0] * size[1]
    (crop,) = choose_crops(size, 1, "", bucket_for(size, 1024, 32))
    assert crop.width * crop.height > 0.94 * size[0] * size[1]


def test_pixels_of_a_crop_at_its_own_size_are_the_images_own():
    image = noise(12, 8)
    (crop,) = choose_crops(image.size, 1, "", image.size)
    pixels = crop_pixels(image, crop, image.size, flip=False)
    assert pixels.shape == (3, 8, 12)
    own = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(((pixels + 1) * 127.5).round().to(torch.uint8), own)
    assert torch.equal(crop_pixels(image, crop, image.size, flip=True), pixels.flip(-1))


def test_a_mask_takes_the_same_crop_and_the_mean_of_each_area():
    values = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    crop = Crop(left=7, top=3, width=48, height=32)
    mask = crop_mask(Image.fromarray(values), crop, (6, 4), flip=False)
    expected = values[3:35, 7:55].reshape(4, 8, 6, 8).mean((1, 3)) / 255
    np.testing.assert_allclose(mask.numpy(), expected, rtol=1e-5)
    assert torch.equal(crop_mask(Image.fromarray(values), crop, (6, 4), flip=True), mask.flip(-1))


def test_size_conditioning_counts_the_crops_corner_in_resized_pixels():
    image = Image.new("RGB", (120, 80))
    (crop,) = choose_crops(image.size, 1, "")
    assert size_conditioning(image, crop, (40, 40)) == (80, 120, 0, 10, 40, 40)
    (crop,) = choose_crops(image.size, 1, "", (64, 32))
    assert size_conditioning(image, crop, (64, 32)) == (80, 120, 5, 0, 32, 64)


@pytest.mark.parametrize("size", [(20, 20), (30, 10)])
def test_a_flipped_crop_is_one_of_the_mirrored_image(size: tuple[int, int]):
    image, (width, height) = noise(60, 40), size
    crop = Crop(left=5, top=3, width=width, height=height)
    _, _, top, left, _, _ = size_conditioning(image, crop, size, flip=True)
    mirrored = Crop(left=left, top=top, width=width, height=height)
    flipped = crop_pixels(image, crop, size, flip=True)
    assert torch.equal(crop_pixels(ImageOps.mirror(image), mirrored, size, flip=False), flipped)
