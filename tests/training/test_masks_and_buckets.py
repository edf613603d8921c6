"""Masks and shapes of photos reach the loss, and change nothing for the concepts that train beside them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tara.core.losses import denoising_loss, subject_weights
from tara.errors import TaraError, TaraWarning
from tara.families.base import Base
from tara.storage.images import read_image
from tara.training.checkpoints import load_checkpoint, save_checkpoint
from tara.training.concept_settings import ConceptSettings
from tara.training.inputs import check_inputs
from training_fixtures import (
    all_same,
    difference,
    photo_folder,
    quick,
    run_steps,
    same,
    trained,
    training_of,
    two_concepts,
)

BOX = (4, 8, 20, 28)  # the subject in a photo of 32 x 32 pixels


def masked(concept: ConceptSettings, box: tuple[int, int, int, int] = BOX) -> ConceptSettings:
    """The concept with a mask for each photo."""
    folder = concept.images.with_name(concept.images.name + "-masks")
    folder.mkdir()
    for photo in concept.images.iterdir():
        mask = Image.new("L", read_image(photo).size)
        mask.paste(255, box)
        mask.save(folder / photo.name)
    return concept.model_copy(update={"masks": folder})


def mixed(folder: Path) -> list[ConceptSettings]:
    """Two concepts with wide, high and square photos."""
    dog, cat = two_concepts(folder)
    for name, size in {"dog/0.png": (60, 40), "dog/1.png": (40, 60), "cat/0.png": (60, 34)}.items():
        read_image(folder / name).resize(size).save(folder / name)
    return [dog, cat]


@given(covered=st.integers(1, 16), background=st.floats(0.0, 1.0))
def test_the_masked_losss_scale_does_not_depend_on_the_subjects_size(covered: int, background: float):
    mask = (torch.arange(16) < covered).double().view(1, 1, 4, 4)
    weights = subject_weights(mask, background)
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(weights.flatten()[-1] * 1.0, weights.flatten()[0] * (1 if covered == 16 else background))
    error = torch.full((1, 4, 4, 4), 3.0, dtype=torch.float64)
    loss = denoising_loss(error, torch.zeros_like(error), pixel_weights=weights)
    torch.testing.assert_close(loss, torch.tensor([9.0], dtype=torch.float64))


def test_a_crop_without_its_subject_teaches_nothing_when_the_background_weighs_nothing():
    weights = subject_weights(torch.zeros(1, 1, 4, 4), 0.0)
    assert torch.equal(weights, torch.zeros_like(weights))


def test_the_masked_loss_equals_a_plain_float64_formula(float64_base: Base, tmp_path: Path):
    base, dog = float64_base, masked(two_concepts(tmp_path)[0])
    settings = quick(masked_loss=True, background_weight=0.25, flip=False, alignment_loss="off", snr_gamma=5.0)
    training = training_of([dog], settings, base)
    (rows,) = training.images(0).groups
    text = base.encode([dog.phrase] * 2).embeddings
    predicted = base.denoiser(
        rows.noisy, rows.timesteps, text
    ).sample  # the stock network: a fresh adapter changes nothing
    weights = torch.full((16, 16), 0.25, dtype=torch.float64)  # one latent is two pixels
    weights[4:14, 2:10] = 1.0
    error = ((predicted - rows.target) ** 2).mean(1)
    expected = (error * weights).sum((1, 2)) / weights.sum() * rows.weights
    record = next(iter(training.steps()))
    assert record.concepts[0].denoising == pytest.approx(float(expected.mean()), rel=1e-9)


def test_a_mask_is_mirrored_with_its_photo(shared_base: Base, tmp_path: Path):
    dog = masked(two_concepts(tmp_path)[0])
    ((photos,),) = training_of([dog], quick(masked_loss=True, crops=2), shared_base).sources
    for photo in photos.latents:
        assert photo.pixel_weights is not None
        plain, mirrored = photo.pixel_weights[::2], photo.pixel_weights[1::2]
        torch.testing.assert_close(plain, mirrored.flip(-1))
        assert not torch.equal(plain, mirrored)


def test_masks_that_are_white_all_over_change_no_bit(shared_base: Base, tmp_path: Path):
    concepts, settings = two_concepts(tmp_path), {"steps": 2}
    white = [masked(concept, (0, 0, 32, 32)) for concept in concepts]
    plain = trained(concepts, quick(**settings), shared_base)
    assert all_same(trained(white, quick(**settings, masked_loss=True), shared_base), plain)


@pytest.mark.filterwarnings("ignore:The masked loss has no effect on 'xlo dog'")
@pytest.mark.parametrize(
    ("shape", "changes"),
    [("float64_sdxl", {"targets": "attention"}), ("float64_base", {"gradient_accumulation_steps": 2, "crops": 2})],
    ids=["attention", "cross_kv"],
)
def test_a_masked_concept_of_mixed_shapes_trains_beside_another_as_it_would_alone(
    tmp_path: Path, shape: str, changes: dict[str, Any], request: pytest.FixtureRequest
):
    base = request.getfixturevalue(shape)
    dog, cat = mixed(tmp_path)
    concepts = [dog, masked(cat)]
    settings = quick(steps=2, masked_loss=True, buckets=True, **changes)
    together = trained(concepts[::-1], settings, base)[::-1]
    for concept, adapter in zip(concepts, together, strict=True):
        (alone,) = trained([concept], settings, base)
        assert difference(adapter, alone) < 1e-6
        assert any(float(low_rank.b.abs().max()) > 0.01 for low_rank in adapter.layers.values())


def test_resuming_with_masks_and_buckets_equals_never_having_stopped_bit_for_bit(shared_sdxl: Base, tmp_path: Path):
    concepts = [masked(concept) for concept in mixed(tmp_path)]
    settings = quick(steps=2, masked_loss=True, buckets=True, batch_size=3, targets="attention")
    whole = training_of(concepts, settings, shared_sdxl)
    for record in whole.steps():
        if record.index == 1:
            path = save_checkpoint(tmp_path / "checkpoints", whole.state())
    resumed = training_of(concepts, settings, shared_sdxl)
    resumed.load(load_checkpoint(path))
    run_steps(resumed)
    assert all_same(whole.adapters(), resumed.adapters())


def test_buckets_change_no_bit_for_square_photos(shared_base: Base, tmp_path: Path):
    concepts = two_concepts(tmp_path)
    plain, bucketed = (trained(concepts, quick(steps=2, crops=2, buckets=on), shared_base) for on in (False, True))
    assert all_same(plain, bucketed)


def test_every_row_of_a_bucket_is_its_own_photo_and_says_its_size(shared_sdxl: Base, tmp_path: Path):
    images = training_of(mixed(tmp_path), quick(buckets=True, flip=False, batch_size=3), shared_sdxl).images(0)
    assert sorted(row for group in images.groups for row in group.rows) == list(range(6))
    assert len(images.groups) > 1
    known = {(60, 40): (40, 28), (40, 60): (28, 40), (32, 32): (32, 32), (60, 34): (44, 24)}
    for group in images.groups:
        height, width = (side * shared_sdxl.vae_scale for side in group.noisy.shape[-2:])
        for original_height, original_width, _, _, *target in group.sizes.tolist():
            assert target == [height, width]
            assert known[original_width, original_height] == (width, height)
    numbered = [torch.tensor(group.rows, dtype=torch.float64) for group in images.groups]
    assert images.in_order(numbered).tolist() == list(range(6))


def test_the_loss_of_a_batch_of_mixed_shapes_is_the_mean_of_its_images_losses(float64_base: Base, tmp_path: Path):
    base = float64_base
    settings = quick(buckets=True, captions="varied", batch_size=3, alignment_loss="off")
    training = training_of(mixed(tmp_path), settings, base)
    images = training.images(0)
    assert len(images.groups) > 1
    losses: dict[int, float] = {}
    for group in images.groups:
        for place, row in enumerate(group.rows):  # one by one, by the stock network: fresh adapters change nothing
            text = base.encode([images.captions[row].text]).embeddings
            predicted = base.denoiser(group.noisy[place][None], group.timesteps[place], text).sample
            losses[row] = float(((predicted - group.target[place]) ** 2).mean())
    record = next(iter(training.steps()))
    for concept, first in zip(record.concepts, (0, 3), strict=True):
        expected = sum(losses[row] for row in range(first, first + 3)) / 3
        assert concept.denoising == pytest.approx(expected, rel=1e-9)


def test_a_resolution_without_a_square_bucket_is_refused(shared_base: Base, tmp_path: Path):
    settings = quick(buckets=True).model_copy(update={"resolution": 34})
    with pytest.raises(TaraError, match="resolution = 34 is refused: with buckets this base needs a multiple of 4"):
        check_inputs(two_concepts(tmp_path), settings, shared_base)


def test_masks_without_the_masked_loss_are_warned_of(shared_base: Base, tmp_path: Path):
    dog = masked(two_concepts(tmp_path)[0])
    with pytest.warns(TaraWarning, match="masks of 'xlo dog' have no effect without the masked loss"):
        check_inputs([dog], quick(), shared_base)


def test_a_masked_loss_without_any_mask_is_warned_of(shared_base: Base, tmp_path: Path):
    with pytest.warns(TaraWarning, match="masked loss has no effect on 'xlo dog'"):
        check_inputs(two_concepts(tmp_path)[:1], quick(masked_loss=True), shared_base)


def test_transparent_photos_need_no_mask_folder(shared_base: Base, tmp_path: Path):
    folder = photo_folder(tmp_path / "dog", 2)
    alpha = Image.new("L", (32, 32))
    alpha.paste(255, BOX)
    for path in folder.iterdir():
        image = read_image(path)
        image.putalpha(alpha)
        image.save(path)
    dog = ConceptSettings(images=folder, rare_word="xlo", class_word="dog")
    plain, focused = (trained([dog], quick(steps=1, masked_loss=on), shared_base)[0] for on in (False, True))
    assert not same(plain, focused)
