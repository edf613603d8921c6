"""Masks and shapes of photos reach the loss, and change nothing for the concepts that train beside them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tiny_bases
from tara.adapters.adapter import Adapter
from tara.core.losses import denoising_loss, subject_weights
from tara.errors import TaraError, TaraWarning
from tara.families.base import Base
from tara.storage.images import read_image
from tara.training.concepts import check_concepts
from tara.training.image_batch import image_batch
from tara.training.loop import Training
from tara.training.run.checkpoints import load_checkpoint, save_checkpoint
from tara.training.settings import ConceptSettings, TrainSettings
from training_fixtures import in_float64, photo_folder, quick, two_concepts

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


def trained(concepts: Sequence[ConceptSettings], settings: TrainSettings, backbone: Base) -> list[Adapter]:
    training = Training(concepts, settings, backbone)
    for _ in training.steps():
        pass
    return training.adapters()


def pairs(one: Adapter, other: Adapter) -> list[tuple[torch.Tensor, torch.Tensor]]:
    assert one.layers.keys() == other.layers.keys()
    return [
        (getattr(one.layers[path], part), getattr(other.layers[path], part)) for path in one.layers for part in "ab"
    ]


def difference(one: Adapter, other: Adapter) -> float:
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs(one, other))


def same(one: Adapter, other: Adapter) -> bool:
    return all(torch.equal(a, b) for a, b in pairs(one, other))


@given(covered=st.integers(1, 16), background=st.floats(0.0, 1.0))
def test_the_masked_losss_scale_does_not_depend_on_the_subjects_size(covered: int, background: float):
    mask = (torch.arange(16) < covered).double().view(1, 1, 4, 4)
    weights = subject_weights(mask, background)
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(weights.flatten()[-1] * 1.0, weights.flatten()[0] * (1 if covered == 16 else background))
    error = torch.full((1, 4, 4, 4), 3.0, dtype=torch.float64)
    loss = denoising_loss(error, torch.zeros_like(error), focus=weights)
    torch.testing.assert_close(loss, torch.tensor([9.0], dtype=torch.float64))


def test_a_crop_without_its_subject_teaches_nothing_when_the_background_weighs_nothing():
    weights = subject_weights(torch.zeros(1, 1, 4, 4), 0.0)
    assert torch.equal(weights, torch.zeros_like(weights))


def test_the_masked_loss_equals_a_plain_float64_formula(v_pipe: Any, tmp_path: Path):
    backbone, dog = in_float64(v_pipe), masked(two_concepts(tmp_path)[0])
    settings = quick(masked_loss=True, background_weight=0.25, flip=False, alignment_loss="off", snr_gamma=5.0)
    (material,) = (training := Training([dog], settings, backbone))._materials
    (rows,) = image_batch([material], training._schedule, seed=0, call=0, batch_size=2).alike
    backbone.install()
    encoding = backbone.encode([dog.phrase] * 2)
    predicted = v_pipe.unet(rows.noisy, rows.timesteps, encoding.embeddings).sample  # a fresh adapter changes nothing
    weights = torch.full((16, 16), 0.25, dtype=torch.float64)  # one latent is two pixels
    weights[4:14, 2:10] = 1.0
    error = ((predicted - rows.target) ** 2).mean(1)
    expected = (error * weights).sum((1, 2)) / weights.sum() * rows.weights
    record = next(iter(training.steps()))
    assert record.concepts[0].denoising == pytest.approx(float(expected.mean()), rel=1e-9)


def test_a_mask_is_mirrored_with_its_photo(sd_pipe: Any, tmp_path: Path):
    dog = masked(two_concepts(tmp_path)[0])
    (material,) = Training([dog], quick(masked_loss=True, crops=2), Base(sd_pipe))._materials
    for photo in material.latents:
        assert photo.focus is not None
        plain, mirrored = photo.focus[::2], photo.focus[1::2]
        torch.testing.assert_close(plain, mirrored.flip(-1))
        assert not torch.equal(plain, mirrored)


def test_masks_that_are_white_all_over_change_no_bit(sd_pipe: Any, tmp_path: Path):
    backbone, concepts = Base(sd_pipe), two_concepts(tmp_path)
    white = [masked(concept, (0, 0, 32, 32)) for concept in concepts]
    plain = trained(concepts, quick(), backbone)
    assert all(
        same(one, other) for one, other in zip(trained(white, quick(masked_loss=True), backbone), plain, strict=True)
    )


@pytest.mark.filterwarnings("ignore:The masked loss has no effect on 'xlo dog'")
@pytest.mark.parametrize(
    ("shape", "changes"),
    [("sdxl", {"targets": "attention"}), ("sd", {"gradient_accumulation_steps": 2, "crops": 2})],
    ids=["attention", "cross_kv"],
)
def test_a_masked_concept_of_mixed_shapes_trains_beside_another_as_it_would_alone(
    tmp_path: Path, shape: str, changes: dict[str, Any]
):
    backbone = in_float64(tiny_bases.sd_pipeline() if shape == "sd" else tiny_bases.sdxl_pipeline())
    dog, cat = mixed(tmp_path)
    concepts = [dog, masked(cat)]
    settings = quick(steps=5, masked_loss=True, buckets=True, **changes)
    together = trained(concepts[::-1], settings, backbone)[::-1]
    for concept, adapter in zip(concepts, together, strict=True):
        (alone,) = trained([concept], settings, backbone)
        assert difference(adapter, alone) < 1e-6
        assert any(float(low_rank.b.abs().max()) > 0.01 for low_rank in adapter.layers.values())


def test_resuming_with_masks_and_buckets_equals_never_having_stopped_bit_for_bit(sdxl_pipe: Any, tmp_path: Path):
    backbone, concepts = Base(sdxl_pipe), [masked(concept) for concept in mixed(tmp_path)]
    settings = quick(steps=6, masked_loss=True, buckets=True, batch_size=3, targets="attention")
    whole = trained(concepts, settings, backbone)
    first = Training(concepts, settings, backbone)
    for record in first.steps():
        if record.index == 3:
            break
    path = save_checkpoint(tmp_path / "checkpoints", first.state())
    second = Training(concepts, settings, backbone)
    second.load(load_checkpoint(path))
    for _ in second.steps():
        pass
    assert all(same(one, other) for one, other in zip(whole, second.adapters(), strict=True))


def test_buckets_change_no_bit_for_square_photos(sd_pipe: Any, tmp_path: Path):
    backbone, concepts = Base(sd_pipe), two_concepts(tmp_path)
    plain = trained(concepts, quick(crops=2), backbone)
    bucketed = trained(concepts, quick(crops=2, buckets=True), backbone)
    assert all(same(one, other) for one, other in zip(plain, bucketed, strict=True))


def test_every_row_of_a_bucket_is_its_own_photo_and_says_its_size(sdxl_pipe: Any, tmp_path: Path):
    backbone = Base(sdxl_pipe)
    training = Training(mixed(tmp_path), quick(buckets=True, flip=False, batch_size=3), backbone)
    pictures = image_batch(training._materials, training._schedule, seed=0, call=0, batch_size=3)
    assert sorted(row for part in pictures.alike for row in part.rows) == list(range(6))
    assert len(pictures.alike) > 1
    known = {(60, 40): (40, 28), (40, 60): (28, 40), (32, 32): (32, 32), (60, 34): (44, 24)}
    for part in pictures.alike:
        height, width = (side * backbone.vae_scale for side in part.noisy.shape[-2:])
        for original_height, original_width, _, _, *target in part.sizes.tolist():
            assert target == [height, width]
            assert known[original_width, original_height] == (width, height)
    numbered = [torch.tensor(part.rows, dtype=torch.float64) for part in pictures.alike]
    assert pictures.in_order(numbered).tolist() == list(range(6))


def test_the_loss_of_a_batch_of_mixed_shapes_is_the_mean_of_its_pictures_losses(v_pipe: Any, tmp_path: Path):
    backbone = in_float64(v_pipe)
    settings = quick(buckets=True, captions="varied", batch_size=3, alignment_loss="off")
    training = Training(mixed(tmp_path), settings, backbone)
    pictures = image_batch(training._materials, training._schedule, seed=0, call=0, batch_size=3)
    assert len(pictures.alike) > 1
    losses: dict[int, float] = {}
    for part in pictures.alike:
        for place, row in enumerate(part.rows):  # one by one, and through the stock U-Net: fresh adapters are silent
            text = backbone.encode([pictures.captions[row].text]).embeddings
            predicted = v_pipe.unet(part.noisy[place][None], part.timesteps[place], text).sample
            losses[row] = float(((predicted - part.target[place]) ** 2).mean())
    record = next(iter(training.steps()))
    for concept, first in zip(record.concepts, (0, 3), strict=True):
        expected = sum(losses[row] for row in range(first, first + 3)) / 3
        assert concept.denoising == pytest.approx(expected, rel=1e-9)


def test_a_resolution_without_a_square_bucket_is_refused(sd_pipe: Any, tmp_path: Path):
    settings = quick(buckets=True).model_copy(update={"resolution": 34})
    with pytest.raises(TaraError, match="resolution = 34 is refused: with buckets this base needs a multiple of 4"):
        Training(two_concepts(tmp_path), settings, Base(sd_pipe))


def test_masks_without_the_masked_loss_are_said_to_be_idle(tmp_path: Path):
    dog = masked(two_concepts(tmp_path)[0])
    with pytest.warns(TaraWarning, match="masks of 'xlo dog' have no effect without the masked loss"):
        check_concepts([dog], quick())


def test_a_masked_loss_without_any_mask_is_said_to_be_idle(tmp_path: Path):
    with pytest.warns(TaraWarning, match="masked loss has no effect on 'xlo dog'"):
        check_concepts(two_concepts(tmp_path)[:1], quick(masked_loss=True))


def test_transparent_photos_need_no_mask_folder(sd_pipe: Any, tmp_path: Path):
    folder = photo_folder(tmp_path / "dog", 2)
    alpha = Image.new("L", (32, 32))
    alpha.paste(255, BOX)
    for path in folder.iterdir():
        image = read_image(path)
        image.putalpha(alpha)
        image.save(path)
    dog = ConceptSettings(images=folder, rare_word="xlo", class_word="dog")
    backbone = Base(sd_pipe)
    plain, focused = (trained([dog], quick(masked_loss=on), backbone)[0] for on in (False, True))
    assert not same(plain, focused)
