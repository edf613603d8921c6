"""Training changes low-rank factors only, each concept as if it were alone, and can be stopped at any step."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_bases
from tara.adapters.adapter import load_adapter
from tara.errors import TaraError, TaraWarning
from tara.families.base import Base
from tara.inference.pipeline import Pipeline
from tara.training.text_batch import text_conditioning
from training_fixtures import (
    all_same,
    difference,
    photo_folder,
    quick,
    run_steps,
    trained,
    training_of,
    two_concepts,
)


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ("float64_base", {}),
        (
            "float64_base",
            {
                "token_mask": False,
                "alignment_loss": "off",
                "captions": "varied",
                "batch_size": 1,
                "gradient_accumulation_steps": 2,
            },
        ),
        ("float64_sdxl", {"targets": "attention", "max_grad_norm": 1e-3, "snr_gamma": 5.0}),
    ],
    ids=["cross_kv", "plain", "attention"],
)
def test_training_two_concepts_together_equals_training_each_alone(
    tmp_path: Path, shape: str, changes: dict[str, Any], request: pytest.FixtureRequest
):
    base, concepts = request.getfixturevalue(shape), two_concepts(tmp_path)
    settings = quick(**changes)
    together = trained(concepts[::-1], settings, base)[::-1]  # the order must not matter either
    for concept, adapter in zip(concepts, together, strict=True):
        (alone,) = trained([concept], settings, base)
        assert difference(adapter, alone) < 1e-6
        assert any(float(low_rank.b.abs().max()) > 0.01 for low_rank in adapter.layers.values())


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_with_its_step_and_cause(
    shared_base: Base, tmp_path: Path, number: float
):
    training = training_of(two_concepts(tmp_path), quick(), shared_base)
    steps = training.steps()
    next(steps)
    before = training.adapters()
    for photo in training.sources[1][0].latents:
        photo.mean[...] = number
    with pytest.raises(
        TaraError, match=r"Step 2: the loss of 'szn cat' is NaN or infinite\. The learning rate \(0\.01\)"
    ):
        next(steps)
    assert all_same(training.adapters(), before)


def test_gradients_and_weights_that_are_not_finite_stop_the_run(
    shared_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = training_of(two_concepts(tmp_path), quick(batch_size=1), shared_base)
    with monkeypatch.context() as patch:
        # the gradients of two concepts, and not the four losses
        patch.setattr(type(training.processes), "mean", lambda _, mean: mean / 0 if len(mean) == 2 else mean)
        with pytest.raises(TaraError, match=r"Step 1: the gradient of 'xlo dog' is NaN or infinite\. .* damaged"):
            next(training.steps())
    # settings allow no such rate; it stands for a run that diverges
    settings = quick(batch_size=1).model_copy(update={"learning_rate": 1e30})
    training = training_of(two_concepts(tmp_path / "b"), settings, shared_base)
    with pytest.raises(TaraError, match=r"Step \d: the (loss|adapter) of .* is NaN or infinite\. The learning rate"):
        run_steps(training)


def test_weights_that_are_not_finite_are_never_saved(shared_base: Base, tmp_path: Path):
    training = training_of(two_concepts(tmp_path), quick(steps=1), shared_base)
    run_steps(training)
    training.weights.flat.detach()[1, 0] = math.nan
    for saved in (training.state, training.adapters):
        with pytest.raises(TaraError, match=r"Step 1: the adapter of 'szn cat' is NaN or infinite"):
            saved()


@pytest.mark.parametrize("shape", ["shared_base", "shared_sdxl"])
def test_neither_text_encoder_nor_autoencoder_runs_in_a_step(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    base: Base = request.getfixturevalue(shape)
    training = training_of(two_concepts(tmp_path), quick(captions="varied", steps=2), base)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a step ran a frozen encoder")

    for part in (base.vae, *base.text_encoders):
        monkeypatch.setattr(part, "forward", refuse)
        monkeypatch.setattr(part, "encode", refuse, raising=False)
    assert len(run_steps(training)) == 2


def test_the_network_is_left_as_it_was_also_after_an_error(
    sd_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sd_pipe.unet.requires_grad_(True).train()
    before = {name: value.clone() for name, value in sd_pipe.unet.state_dict().items()}
    stock = sd_pipe.unet.attn_processors
    base = Base(sd_pipe)
    training = training_of(two_concepts(tmp_path), quick(gradient_checkpointing=True), base)
    monkeypatch.setattr(training.optimizers, "step", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run_steps(training)
    assert all(parameter.grad is None for parameter in sd_pipe.unet.parameters())
    after = sd_pipe.unet.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not base.processors.installed
    assert sd_pipe.unet.attn_processors == stock
    assert not sd_pipe.unet.is_gradient_checkpointing
    assert sd_pipe.unet.training
    assert all(parameter.requires_grad for parameter in sd_pipe.unet.parameters())


@pytest.mark.parametrize("shape", ["float64_base", "float64_sdxl"])
def test_gradient_checkpointing_changes_no_number_that_matters(
    shape: str, tmp_path: Path, request: pytest.FixtureRequest
):
    base, concepts = request.getfixturevalue(shape), two_concepts(tmp_path)
    plain = trained(concepts, quick(targets="attention", steps=2), base)
    frugal = trained(concepts, quick(targets="attention", steps=2, gradient_checkpointing=True), base)
    assert max(difference(one, other) for one, other in zip(plain, frugal, strict=True)) < 1e-9


def test_only_the_rare_words_keys_and_values_change(float64_base: Base, tmp_path: Path):
    training = training_of(two_concepts(tmp_path), quick(captions="varied", batch_size=3), float64_base)
    run_steps(training)
    text = training.text(training.images(9))
    learned = text_conditioning(float64_base, text, training.weights)
    adapters = training.adapters()
    for layer, frozen in text.kv.items():
        for row, caption in enumerate(text.captions):
            for part, name in enumerate(("to_k", "to_v")):
                expected = frozen[part][row].clone()
                low_rank = adapters[row // 3].layers[f"{layer}.{name}"]
                positions = list(caption.rare_positions)
                assert len(positions) == (2 if row < 3 else 3)
                expected[positions] += low_rank.delta(caption.encoding.embeddings[0, positions])
                torch.testing.assert_close(learned.kv[layer][part][row], expected, rtol=1e-12, atol=1e-14)


def test_the_reported_losses_equal_plain_float64_formulas(float64_base: Base, tmp_path: Path):
    settings = quick(alignment_weight=0.5, alignment_loss="squared", captions="varied")
    training = training_of(two_concepts(tmp_path), settings, float64_base)
    run_steps(training, last=3)
    images = training.images(3)
    expected: list[float] = []
    for adapter, captions in zip(training.adapters(), (images.captions[:2], images.captions[2:]), strict=True):
        distances: list[float] = []
        for caption in captions:
            x = caption.encoding.embeddings[0]
            for layer in float64_base.text_layers:
                weight, low_rank = float64_base.layer(f"{layer}.to_k").weight, adapter.layers[f"{layer}.to_k"]
                delta = low_rank.scale * low_rank.b @ low_rank.a
                rare = sum((weight + delta) @ x[p] for p in caption.first_rare_positions)
                of_class = sum(weight @ x[p] for p in caption.class_positions)
                gap = rare / len(caption.first_rare_positions) - of_class / len(caption.class_positions)
                distances.append(float((gap**2).mean()))
        expected.append(sum(distances) / len(distances))
    record = next(iter(training.steps()))
    for part, alignment in zip(record.concepts, expected, strict=True):
        assert part.alignment == pytest.approx(alignment, rel=1e-9)
        assert part.loss == pytest.approx(part.denoising + 0.5 * part.alignment, rel=1e-12)


def test_training_lowers_the_denoising_loss_on_its_own_photos(v_pipe: Any, tmp_path: Path):
    base, dog = Base(v_pipe), two_concepts(tmp_path)[:1]
    training = training_of(dog, quick(steps=8, targets="attention", learning_rate=3e-2), base)
    run_steps(training)
    # the same photos, timesteps and noise before and after it, at a rate that changes nothing
    before, after = (training_of(dog, quick(targets="attention", learning_rate=1e-12), base) for _ in range(2))
    after.load(replace(training.state(), step=0))
    losses = [sum(record.loss for record in run_steps(each)) for each in (before, after)]
    assert losses[1] < 0.9 * losses[0]


def test_the_alignment_loss_falls_when_it_is_all_that_counts(shared_base: Base, tmp_path: Path):
    settings = quick(steps=10, alignment_weight=100.0, batch_size=1)
    records = run_steps(training_of(two_concepts(tmp_path)[:1], settings, shared_base))
    assert records[-1].concepts[0].alignment < 0.5 * records[0].concepts[0].alignment


def test_the_adapters_card_describes_it_and_is_written_with_it(shared_base: Base, tmp_path: Path):
    settings = quick(alpha=0.9, rank=3, steps=1)
    adapters = trained(two_concepts(tmp_path), settings, shared_base)
    card = load_adapter(adapters[0].save(tmp_path / "rex.safetensors")).card
    assert (card.rare_word, card.class_word, card.phrase) == ("xlo", "dog", "a photo of a xlo dog")
    assert (card.rank, card.alpha, card.targets) == (3, 3, "cross_kv")  # the scale is in B
    assert card.settings["alpha"] == 0.9
    assert card.settings["steps"] == 1
    assert json.loads(card.model_dump_json())["settings"]["trained_steps"] == 1
    assert len(adapters[0].layers) == 2 * len(shared_base.text_layers)


def test_previews_between_steps_change_nothing(sd_pipe: Any, tmp_path: Path):
    base, concepts = Base(sd_pipe), two_concepts(tmp_path)
    whole = trained(concepts, quick(steps=3), base)
    training = training_of(concepts, quick(steps=3), base)
    for _ in training.steps():
        base.processors.release()
        sd_pipe("a dog", num_inference_steps=1, output_type="latent")
    assert all_same(whole, training.adapters())


def test_prior_preservation_without_any_effect_is_warned_of_and_left_out(shared_base: Base, tmp_path: Path):
    concepts = two_concepts(tmp_path)
    with pytest.warns(TaraWarning, match="Prior preservation has no effect here"):
        adapters = trained(concepts, quick(steps=2, prior_preservation=True), shared_base)
    assert all_same(adapters, trained(concepts, quick(steps=2), shared_base))


def test_prior_preservation_adds_the_class_images_loss_and_leaves_the_photos_loss_alone(
    shared_base: Base, tmp_path: Path
):
    concepts = two_concepts(tmp_path)
    folders = {"dog": photo_folder(tmp_path / "dogs", 5, seed=8), "cat": photo_folder(tmp_path / "cats", 4, seed=9)}
    settings = quick(targets="attention", prior_preservation=True, prior_loss_weight=0.5)
    (record,) = run_steps(training_of(concepts, settings, shared_base, folders), last=1)
    (plain,) = run_steps(training_of(concepts, quick(targets="attention"), shared_base), last=1)
    for part, without in zip(record.concepts, plain.concepts, strict=True):
        assert part.denoising == pytest.approx(without.denoising, rel=1e-4)
        assert part.prior > 0
        assert part.loss == pytest.approx(part.denoising + part.alignment + 0.5 * part.prior, rel=1e-5)


def test_prior_preservation_without_class_images_is_refused(shared_base: Base, tmp_path: Path):
    settings = quick(targets="attention", prior_preservation=True)
    with pytest.raises(TaraError, match="needs images of the class 'dog'"):
        training_of(two_concepts(tmp_path), settings, shared_base)


def test_a_caption_needs_no_class_word_when_nothing_is_aligned(shared_base: Base, tmp_path: Path):
    dog = two_concepts(tmp_path)[0].model_copy(update={"prompt": "a photo of a {rare_word}"})
    assert len(run_steps(training_of([dog], quick(alignment_loss="off", steps=1), shared_base))) == 1


def test_a_missing_optimizer_package_is_named(shared_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(TaraError, match=r"needs the package bitsandbytes.*tara-diffusion\[8bit\]"):
        training_of(two_concepts(tmp_path), quick(optimizer="adamw8bit"), shared_base)


@pytest.mark.parametrize(("precision", "scales"), [(torch.float16, [2.0**16] * 2), (torch.bfloat16, [1.0] * 2)])
def test_half_precision_bases_train_with_a_loss_scale_for_each_concept(
    sd_pipe: Any, tmp_path: Path, precision: torch.dtype, scales: list[float]
):
    sd_pipe.to(precision)
    training = training_of(two_concepts(tmp_path), quick(alignment_weight=4.0, steps=2), Base(sd_pipe))
    assert all(not part.skipped for record in run_steps(training) for part in record.concepts)
    assert training.optimizers.loss_scales == scales
    assert {low_rank.a.dtype for low_rank in training.adapters()[0].layers.values()} == {torch.float32}


@pytest.mark.gpu
def test_text_encoder_and_autoencoder_stay_in_the_cpus_memory_during_steps(tmp_path: Path):
    base = Base(tiny_bases.sd_pipeline().to("cuda"))
    steps = training_of(two_concepts(tmp_path), quick(resolution=32), base).steps()
    next(steps)
    assert {part.device.type for part in (base.vae, *base.text_encoders)} == {"cpu"}
    Pipeline(base)("a dog", steps=1)  # a preview needs them, and the next step offloads them again
    for _ in steps:
        assert base.vae.device.type == "cpu"
    assert {part.device.type for part in (base.vae, *base.text_encoders)} == {"cuda"}
