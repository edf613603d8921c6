"""Training changes low-rank factors only, each concept as if it were alone, and can be stopped at any step."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.optimization import get_scheduler

import tiny_bases
from tara.adapters.adapter import Adapter, load_adapter
from tara.errors import TaraError, TaraWarning
from tara.families.base import Base
from tara.families.processors import installed
from tara.inference.pipeline import Pipeline
from tara.training.image_batch import image_batch
from tara.training.loop import StepRecord, Training, train_concepts
from tara.training.optimizers import learning_rate_schedule
from tara.training.run.checkpoints import load_checkpoint, save_checkpoint
from tara.training.settings import ConceptSettings, TrainSettings
from tara.training.text_batch import conditioning
from training_fixtures import difference, in_float64, photo_folder, quick, two_concepts


def run(training: Training, steps: int | None = None) -> list[StepRecord]:
    records: list[StepRecord] = []
    for record in training.steps():
        records.append(record)
        if record.index == steps:
            break
    return records


def trained(concepts: Sequence[ConceptSettings], settings: TrainSettings, backbone: Base) -> list[Adapter]:
    training = Training(concepts, settings, backbone)
    run(training)
    return training.adapters()


def same(one: Adapter, other: Adapter) -> bool:
    return all(
        torch.equal(getattr(one.layers[path], part), getattr(other.layers[path], part))
        for path in one.layers
        for part in "ab"
    )


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ("sd", {}),
        (
            "sd",
            {
                "token_mask": False,
                "alignment_loss": "off",
                "captions": "varied",
                "batch_size": 1,
                "gradient_accumulation_steps": 2,
            },
        ),
        ("sdxl", {"targets": "attention", "max_grad_norm": 1e-3, "snr_gamma": 5.0}),
    ],
    ids=["cross_kv", "plain", "attention"],
)
def test_training_two_concepts_together_equals_training_each_alone(tmp_path: Path, shape: str, changes: dict[str, Any]):
    pipe = tiny_bases.sd_pipeline("v_prediction") if shape == "sd" else tiny_bases.sdxl_pipeline()
    backbone, concepts = in_float64(pipe), two_concepts(tmp_path)
    settings = quick(steps=20, **changes)
    together = trained(concepts[::-1], settings, backbone)[::-1]  # the order must not matter either
    for concept, adapter in zip(concepts, together, strict=True):
        (alone,) = trained([concept], settings, backbone)
        assert difference(adapter, alone) < 1e-6
        assert any(float(low_rank.b.abs().max()) > 0.01 for low_rank in adapter.layers.values())


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_with_its_step_and_cause(sd_pipe: Any, tmp_path: Path, number: float):
    training = Training(two_concepts(tmp_path), quick(), Base(sd_pipe))
    steps = training.steps()
    next(steps)
    before = training.adapters()
    for photo in training._materials[1].latents:
        photo.mean[...] = number
    with pytest.raises(TaraError, match=r"Step 2: the loss of 'szn cat' is not finite\. The learning rate \(0\.01\)"):
        next(steps)
    assert all(same(one, other) for one, other in zip(training.adapters(), before, strict=True))


def test_gradients_and_weights_that_are_no_numbers_stop_the_run(
    sd_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = Training(two_concepts(tmp_path), quick(batch_size=1), Base(sd_pipe))
    with monkeypatch.context() as patch:
        # the gradients of two concepts, and not the four losses
        patch.setattr(type(training.processes), "mean", lambda _, mean: mean / 0 if len(mean) == 2 else mean)
        with pytest.raises(TaraError, match=r"Step 1: the gradient of 'xlo dog' is not finite\. .* damaged"):
            next(training.steps())
    # settings allow no such rate; it stands for a run that blows up
    settings = quick(batch_size=1).model_copy(update={"learning_rate": 1e30})
    training = Training(two_concepts(tmp_path / "b"), settings, Base(sd_pipe))
    with pytest.raises(TaraError, match=r"Step \d: the (loss|adapter) of .* is not finite\. The learning rate"):
        run(training)


def test_resuming_equals_never_having_stopped_bit_for_bit(any_pipe: Any, tmp_path: Path):
    backbone, concepts = Base(any_pipe), two_concepts(tmp_path)
    settings = quick(steps=6, captions="varied", lr_scheduler="cosine", targets="attention")
    whole = trained(concepts, settings, backbone)
    first = Training(concepts, settings, backbone)
    run(first, steps=3)
    path = save_checkpoint(tmp_path / "checkpoints", first.state())
    second = Training(concepts, settings, backbone)
    second.load(load_checkpoint(path))
    assert [record.index for record in run(second)] == [4, 5, 6]
    assert all(same(one, other) for one, other in zip(whole, second.adapters(), strict=True))


def test_resuming_prodigy_equals_never_having_stopped(sd_pipe: Any, tmp_path: Path):
    backbone, concepts = Base(sd_pipe), two_concepts(tmp_path)
    settings = quick(steps=6, optimizer="prodigy", learning_rate=None)
    whole = trained(concepts, settings, backbone)
    first = Training(concepts, settings, backbone)
    run(first, steps=3)
    second = Training(concepts, settings, backbone)
    second.load(load_checkpoint(save_checkpoint(tmp_path / "checkpoints", first.state())))
    run(second)
    assert all(same(one, other) for one, other in zip(whole, second.adapters(), strict=True))


def test_a_checkpoint_of_other_concepts_is_refused(sd_pipe: Any, tmp_path: Path):
    backbone, (dog, cat) = Base(sd_pipe), two_concepts(tmp_path)
    state = Training([dog], quick(), backbone).state()
    with pytest.raises(TaraError, match="checkpoint is of other concepts"):
        Training([cat], quick(), backbone).load(state)


@pytest.mark.parametrize("change", [{"seed": 8}, {"token_mask": False}, {"alpha": 3.0}, {"optimizer": "prodigy"}])
def test_a_checkpoint_of_other_settings_is_refused_by_name(sd_pipe: Any, tmp_path: Path, change: dict[str, Any]):
    backbone, concepts = Base(sd_pipe), two_concepts(tmp_path)
    state = Training(concepts, quick(), backbone).state()
    other = quick(**change) if "optimizer" not in change else quick(**change, learning_rate=None)
    with pytest.raises(TaraError, match=f"checkpoint was written with {next(iter(change))} = .*Resume with the"):
        Training(concepts, other, backbone).load(state)


def test_a_checkpoint_of_another_base_of_the_same_shape_is_refused(tmp_path: Path):
    concepts = two_concepts(tmp_path)
    state = Training(concepts, quick(), Base(tiny_bases.sd_pipeline())).state()
    with pytest.raises(TaraError, match="written with base = "):
        Training(concepts, quick(), Base(tiny_bases.sd_pipeline(seed=5))).load(state)


def test_only_the_last_checkpoints_are_kept_and_a_damaged_one_is_refused(sd_pipe: Any, tmp_path: Path):
    training = Training(two_concepts(tmp_path), quick(), Base(sd_pipe))
    folder = tmp_path / "checkpoints"
    for _ in training.steps():
        last = save_checkpoint(folder, training.state())
    assert sorted(path.name for path in folder.iterdir()) == ["step-000003.safetensors", "step-000004.safetensors"]
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(TaraError, match="not a whole checkpoint"):
        load_checkpoint(last)


def test_neither_text_encoder_nor_autoencoder_runs_in_a_step(
    any_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = Training(two_concepts(tmp_path), quick(captions="varied"), Base(any_pipe))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a step ran a frozen encoder")

    for part in (any_pipe.vae, any_pipe.text_encoder, getattr(any_pipe, "text_encoder_2", any_pipe.vae)):
        monkeypatch.setattr(part, "forward", refuse)
        monkeypatch.setattr(part, "encode", refuse, raising=False)
    assert len(run(training)) == 4


def test_the_unet_is_left_as_it_was_found_also_after_an_error(
    sd_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sd_pipe.unet.requires_grad_(True).train()
    before = {name: value.clone() for name, value in sd_pipe.unet.state_dict().items()}
    stock = sd_pipe.unet.attn_processors
    backbone = Base(sd_pipe)
    training = Training(two_concepts(tmp_path), quick(gradient_checkpointing=True), backbone)
    monkeypatch.setattr(training, "_watch", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run(training)
    assert all(parameter.grad is None for parameter in sd_pipe.unet.parameters())
    after = sd_pipe.unet.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not installed(sd_pipe.unet)
    assert sd_pipe.unet.attn_processors == stock
    assert not sd_pipe.unet.is_gradient_checkpointing
    assert sd_pipe.unet.training
    assert all(parameter.requires_grad for parameter in sd_pipe.unet.parameters())


def test_gradient_checkpointing_changes_no_number_that_matters(any_pipe: Any, tmp_path: Path):
    backbone, concepts = in_float64(any_pipe), two_concepts(tmp_path)
    plain = trained(concepts, quick(targets="attention"), backbone)
    frugal = trained(concepts, quick(targets="attention", gradient_checkpointing=True), backbone)
    assert max(difference(one, other) for one, other in zip(plain, frugal, strict=True)) < 1e-9


def test_only_the_rare_words_keys_and_values_change(sd_pipe: Any, tmp_path: Path):
    backbone, concepts = in_float64(sd_pipe), two_concepts(tmp_path)
    training = Training(concepts, quick(captions="varied", batch_size=3), backbone)
    run(training)
    pictures = image_batch(training._materials, training._schedule, seed=0, call=9, batch_size=3)
    text = training._text(pictures)
    learned = conditioning(text, training._weights, backbone.dtype)
    adapters = training.adapters()
    for layer, frozen in text.kv.items():
        for row, caption in enumerate(text.captions):
            for part, name in enumerate(("to_k", "to_v")):
                expected = frozen[part][row].clone()
                low_rank = adapters[row // 3].layers[f"{layer}.{name}"]
                positions = list(caption.rare)
                assert len(positions) == (2 if row < 3 else 3)
                expected[positions] += low_rank.delta(caption.encoding.embeddings[0, positions])
                torch.testing.assert_close(learned.kv[layer][part][row], expected, rtol=1e-12, atol=1e-14)


def test_the_reported_losses_equal_plain_float64_formulas(v_pipe: Any, tmp_path: Path):
    backbone, concepts = in_float64(v_pipe), two_concepts(tmp_path)
    training = Training(concepts, quick(alignment_weight=0.5, alignment_loss="squared", captions="varied"), backbone)
    run(training, steps=3)
    pictures = image_batch(training._materials, training._schedule, seed=0, call=3, batch_size=2)
    expected: list[float] = []
    for adapter, captions in zip(training.adapters(), (pictures.captions[:2], pictures.captions[2:]), strict=True):
        distances: list[float] = []
        for caption in captions:
            x = caption.encoding.embeddings[0]
            for layer in backbone.text_layers:
                weight, low_rank = v_pipe.unet.get_submodule(layer).to_k.weight, adapter.layers[f"{layer}.to_k"]
                rare = sum(weight @ x[p] + low_rank.scale * low_rank.b @ low_rank.a @ x[p] for p in caption.first_rare)
                kind = sum(weight @ x[p] for p in caption.class_word)
                gap = rare / len(caption.first_rare) - kind / len(caption.class_word)
                distances.append(float((gap**2).mean()))
        expected.append(sum(distances) / len(distances))
    record = next(iter(training.steps()))
    for part, alignment in zip(record.concepts, expected, strict=True):
        assert part.alignment == pytest.approx(alignment, rel=1e-9)
        assert part.loss == pytest.approx(part.denoising + 0.5 * part.alignment, rel=1e-12)


def test_training_lowers_the_denoising_loss_on_its_own_photos(v_pipe: Any, tmp_path: Path):
    records = run(Training(two_concepts(tmp_path), quick(steps=40, targets="attention"), Base(v_pipe)))
    first, last = (sum(record.loss for record in part) for part in (records[:10], records[-10:]))
    assert last < first


def test_the_alignment_loss_falls_when_it_is_all_that_counts(sd_pipe: Any, tmp_path: Path):
    records = run(Training(two_concepts(tmp_path), quick(steps=15, alignment_weight=100.0), Base(sd_pipe)))
    assert records[-1].concepts[0].alignment < 0.5 * records[0].concepts[0].alignment


def test_the_adapter_says_what_it_is_and_survives_the_disk(sd_pipe: Any, tmp_path: Path):
    settings = quick(alpha=0.9, rank=3)
    assert settings.scale * 3 != 0.9  # rounded: the card keeps what was asked for
    generator = train_concepts(two_concepts(tmp_path), settings, Base(sd_pipe))
    adapters: list[Adapter] = []
    try:
        while True:
            next(generator)
    except StopIteration as end:
        adapters = end.value
    card = load_adapter(adapters[0].save(tmp_path / "rex.safetensors")).card
    assert (card.rare_word, card.class_word, card.phrase) == ("xlo", "dog", "a photo of a xlo dog")
    assert (card.rank, card.alpha, card.targets) == (3, 0.9, "cross_kv")
    assert card.settings["steps"] == 4
    assert json.loads(card.model_dump_json())["settings"]["trained_steps"] == 4
    assert len(adapters[0].layers) == 2 * len(Base(sd_pipe).text_layers)


def test_previews_between_steps_change_nothing(sd_pipe: Any, tmp_path: Path):
    backbone, concepts = Base(sd_pipe), two_concepts(tmp_path)
    whole = trained(concepts, quick(), backbone)
    training = Training(concepts, quick(), backbone)
    for _ in training.steps():
        backbone.release()
        sd_pipe("a dog", num_inference_steps=1, output_type="latent")
    assert all(same(one, other) for one, other in zip(whole, training.adapters(), strict=True))


def test_prior_preservation_without_any_effect_is_said_and_left_out(sd_pipe: Any, tmp_path: Path):
    backbone, concepts = Base(sd_pipe), two_concepts(tmp_path)
    with pytest.warns(TaraWarning, match="Prior preservation has no effect here"):
        adapters = trained(concepts, quick(prior_preservation=True), backbone)
    assert all(same(one, other) for one, other in zip(adapters, trained(concepts, quick(), backbone), strict=True))


def test_prior_preservation_adds_the_class_pictures_loss_and_leaves_the_photos_loss_alone(sd_pipe: Any, tmp_path: Path):
    backbone, concepts = Base(sd_pipe), two_concepts(tmp_path)
    folders = {"dog": photo_folder(tmp_path / "dogs", 5, seed=8), "cat": photo_folder(tmp_path / "cats", 4, seed=9)}
    settings = quick(targets="attention", prior_preservation=True, prior_loss_weight=0.5)
    (record, *_) = run(Training(concepts, settings, backbone, folders))
    (plain, *_) = run(Training(concepts, quick(targets="attention"), backbone))
    for part, without in zip(record.concepts, plain.concepts, strict=True):
        assert part.denoising == pytest.approx(without.denoising, rel=1e-4)
        assert part.prior > 0
        assert part.loss == pytest.approx(part.denoising + part.alignment + 0.5 * part.prior, rel=1e-5)


def test_prior_preservation_without_class_pictures_is_refused(sd_pipe: Any, tmp_path: Path):
    settings = quick(targets="attention", prior_preservation=True)
    with pytest.raises(TaraError, match="needs pictures of the class 'dog'"):
        Training(two_concepts(tmp_path), settings, Base(sd_pipe))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt": "a photo of a dog"}, "training phrase, 'a photo of a dog', lacks the rare word 'xlo'"),
        ({"prompt": "a photo of a {rare_word}"}, "lacks the class word 'dog'.* alignment_loss = 'off'"),
        ({"captions": ("the {class_word}",)}, r"caption of .*0\.png, 'the dog', lacks the rare word"),
        ({"prompt": "a photo of " * 40 + "{rare_word} {class_word}"}, "'xlo' lies behind the end"),
        ({"class_word": "xlo dog"}, "rare word 'xlo' is in the class word"),
    ],
)
def test_captions_without_their_words_are_refused(sd_pipe: Any, tmp_path: Path, changes: dict[str, Any], sentence: str):
    dog = two_concepts(tmp_path)[0].model_copy(update=changes)
    with pytest.raises(TaraError, match=sentence):
        Training([dog], quick(), Base(sd_pipe))


def test_lost_text_of_a_long_caption_is_named_once(sd_pipe: Any, tmp_path: Path):
    dog = two_concepts(tmp_path)[0].model_copy(update={"prompt": "a {rare_word} {class_word}" + " on the beach" * 30})
    with pytest.warns(TaraWarning) as notes:  # three photos share it
        Training([dog], quick(), Base(sd_pipe))
    (note,) = (str(note.message) for note in notes)
    assert "is too long" in note
    assert note.endswith("beach on the beach'.")
    assert "xlo" not in note


def test_a_caption_needs_no_class_word_when_nothing_is_aligned(sd_pipe: Any, tmp_path: Path):
    dog = two_concepts(tmp_path)[0].model_copy(update={"prompt": "a photo of a {rare_word}"})
    assert len(run(Training([dog], quick(alignment_loss="off"), Base(sd_pipe)))) == 4


def test_an_ordinary_rare_word_is_warned_of(sd_pipe: Any, tmp_path: Path):
    dog = two_concepts(tmp_path)[0].model_copy(update={"rare_word": "Beach"})
    with pytest.warns(TaraWarning, match="'Beach' is an ordinary English word"):
        Training([dog], quick(), Base(sd_pipe))


def test_who_trains_a_style_is_told_what_helps(sd_pipe: Any, tmp_path: Path):
    style = two_concepts(tmp_path)[0].model_copy(update={"is_style": True, "class_word": "style"})
    with pytest.warns(TaraWarning, match="learned better with targets attention and a text beside each picture"):
        Training([style], quick(), Base(sd_pipe))
    for number, photo in enumerate(sorted(style.images.iterdir())):
        photo.with_suffix(".txt").write_text(f"thing {number} in {style.rare_word} style", encoding="utf-8")
    with pytest.warns(TaraWarning) as told:
        Training([style], quick(), Base(sd_pipe))
    (note,) = [str(one.message) for one in told]
    assert note.endswith("learned better with targets attention.")
    with warnings.catch_warnings():
        warnings.simplefilter("error", TaraWarning)
        Training([style], quick(targets="attention"), Base(sd_pipe))


def test_two_concepts_of_one_name_are_refused(sd_pipe: Any, tmp_path: Path):
    concepts = [concept.model_copy(update={"name": "pet"}) for concept in two_concepts(tmp_path)]
    files = [concept.model_copy(update={"out": tmp_path / f"{concept.rare_word}.safetensors"}) for concept in concepts]
    with pytest.raises(TaraError, match="Two concepts are called 'pet'"):
        Training(files, quick(), Base(sd_pipe))


def test_two_concepts_with_one_output_file_are_refused(sd_pipe: Any, tmp_path: Path):
    dog, cat = two_concepts(tmp_path)
    with pytest.raises(TaraError, match="Two concepts would write"):
        Training([dog, cat.model_copy(update={"out": dog.out})], quick(), Base(sd_pipe))


def test_a_resolution_that_the_base_cannot_take_is_refused(sd_pipe: Any, tmp_path: Path):
    backbone = Base(sd_pipe)
    with pytest.raises(TaraError, match="resolution = 33 is refused"):
        Training(two_concepts(tmp_path), quick().model_copy(update={"resolution": 33}), backbone)


def test_bases_that_draw_but_cannot_be_trained_on_are_refused(sd_pipe: Any, tmp_path: Path):
    concepts = two_concepts(tmp_path)
    with pytest.raises(TaraError, match="takes 9 channels where latents have 4"):
        Training(concepts, quick(), Base(tiny_bases.sd_pipeline(in_channels=9)))
    sd_pipe.scheduler.register_to_config(prediction_type="flow_prediction")
    with pytest.raises(TaraError, match="prediction type 'flow_prediction'"):
        Training(concepts, quick(), Base(sd_pipe))


def test_a_missing_optimiser_package_is_named(sd_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.optim", None)
    with pytest.raises(TaraError, match=r"needs the package bitsandbytes.*tara\[8bit\]"):
        Training(two_concepts(tmp_path), quick(optimizer="adamw8bit"), Base(sd_pipe))


@pytest.mark.parametrize(("precision", "scales"), [(torch.float16, [2.0**16] * 2), (torch.bfloat16, [1.0] * 2)])
def test_half_precision_bases_train_with_a_loss_scale_for_each_concept(
    sd_pipe: Any, tmp_path: Path, precision: torch.dtype, scales: list[float]
):
    sd_pipe.to(precision)
    training = Training(two_concepts(tmp_path), quick(alignment_weight=4.0), Base(sd_pipe))
    assert all(not part.skipped for record in run(training) for part in record.concepts)
    assert training._optimizers.loss_scales == scales
    assert {low_rank.a.dtype for low_rank in training.adapters()[0].layers.values()} == {torch.float32}


@pytest.mark.parametrize("name", ["constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"])
def test_the_learning_rate_follows_diffusers_schedule(name: Any):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    reference = get_scheduler(name, optimizer, num_warmup_steps=4, num_training_steps=20)
    ours = learning_rate_schedule(name, peak=0.3, warmup=4, steps=20)
    for step in range(20):
        assert ours(step) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


def test_a_constant_learning_rate_warms_up_when_told_to():
    assert [learning_rate_schedule("constant", peak=1.0, warmup=2, steps=4)(step) for step in range(4)] == [
        0,
        0.5,
        1,
        1,
    ]


@pytest.mark.gpu
def test_text_encoder_and_autoencoder_rest_in_the_cpus_memory_while_steps_are_taken(tmp_path: Path):
    backbone = Base(tiny_bases.sd_pipeline().to("cuda"))
    steps = Training(two_concepts(tmp_path), quick(resolution=32), backbone).steps()
    next(steps)
    assert {part.device.type for part in (backbone.vae, *backbone.text_encoders)} == {"cpu"}
    Pipeline(backbone)("a dog", steps=1)  # a preview needs them, and the next step lets them rest again
    for _ in steps:
        assert backbone.vae.device.type == "cpu"
    assert {part.device.type for part in (backbone.vae, *backbone.text_encoders)} == {"cuda"}
