"""What captions ask of things, the reader that answers, and the error of its answers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toyland.captions import FEATURES, Caption, Mention, caption
from toyland.code import PatchCode
from toyland.labels import IGNORE
from toyland.reader_net import COLOR_PARTS, COLUMNS, QUESTIONS, REACH, ROWS, Answers, ReaderNet, crops
from toyland.reader_training import ReaderRecipe, reader_shares, spoiled, train_reader
from toyland.reading import (
    LABELS,
    POSITION_WEIGHT,
    ThingLabels,
    clean_estimate,
    noise_weights,
    reading_loss,
    thing_labels,
)
from toyland.render import render
from toyland.scenes import scene_number
from toyland.unet import build_scheduler
from toyland.world import Scene, random_scene

CPU = torch.device("cpu")
SEEDS = st.integers(0, 2**32 - 1)
NAMES = list(QUESTIONS)


def _said(scene: Scene, *named: set[str]) -> Caption:
    mentions = tuple(Mention(start=0, end=1, thing=i, named=frozenset(one)) for i, one in enumerate(named))
    return Caption(text="", mentions=mentions, names_background=True, names_style=False)


def _asked(labels: np.ndarray) -> list[set[str]]:
    return [{name for name, answer in zip(NAMES, names, strict=True) if answer != IGNORE} for names in labels["names"]]


def _single(pattern: str = "stripes", accessory: str = "hat", style: str = "none") -> Scene:
    scene = next(scene for i in range(99) if len((scene := scene_number(3, i)).things) == 1)
    thing = scene.things[0]
    thing = replace(thing, look=replace(thing.look, pattern=pattern, accessory=accessory))
    return replace(scene, things=(thing,), style=style)


@given(SEEDS)
def test_labels_tell_the_truth_about_every_thing(seed: int) -> None:
    scene = random_scene(np.random.default_rng(seed), style="none")
    labels = thing_labels([scene, scene])
    assert labels.dtype == LABELS
    assert labels["row"].tolist() == [0] * len(scene.things) + [1] * len(scene.things)
    for entry, thing in zip(labels, scene.things * 2, strict=True):
        look = thing.look
        np.testing.assert_allclose(entry["place"], [thing.x, thing.y, thing.size], rtol=1e-6)
        np.testing.assert_allclose((entry["colors"] + 1) * 127.5, [look.body, look.second, look.third], atol=1e-4)
        answers = {name: QUESTIONS[name][i] for name, i in zip(NAMES, entry["names"], strict=True) if i != IGNORE}
        expected = {"class": thing.kind, "pattern": look.pattern, "accessory": look.accessory}
        expected |= dict(zip(COLOR_PARTS, look.color_names(), strict=True))
        if look.accessory == "none":
            expected.pop("third")
        assert answers == expected


@given(SEEDS)
def test_only_what_a_caption_names_is_asked(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = random_scene(rng)
    said = caption(scene, rng)
    for asked, mention in zip(_asked(thing_labels([scene], [said])), said.mentions, strict=True):
        assert asked <= {"class", *mention.named}
        assert "class" in asked
        if scene.style != "none":
            assert not asked & set(COLOR_PARTS)


def test_a_dropped_caption_asks_nothing() -> None:
    assert _asked(thing_labels([_single()], [None])) == [set()]


@pytest.mark.parametrize(
    ("pattern", "accessory", "named", "asked"),
    [
        ("stripes", "hat", set(FEATURES), set(NAMES)),
        ("stripes", "none", set(FEATURES), set(NAMES) - {"third"}),  # in full and no accessory: there is none
        ("stripes", "none", {"body", "accessory"}, {"class", "body"}),  # "a red cat" may wear a hat
        ("plain", "hat", {"body", "pattern"}, {"class", "body"}),  # and may be striped
        ("plain", "hat", {"second", "pattern"}, {"class", "second", "pattern"}),  # "a blue trimmed plain cat"
        ("plain", "hat", set(FEATURES), set(NAMES)),
        ("stripes", "hat", set(), {"class"}),
    ],
)
def test_silence_says_that_there_is_none_only_in_a_full_description(
    pattern: str, accessory: str, named: set[str], asked: set[str]
) -> None:
    scene = _single(pattern, accessory)
    assert _asked(thing_labels([scene], [_said(scene, named)])) == [asked]


def _answers(labels: ThingLabels, sure: float) -> Answers:
    """Right answers to everything, each surer than the others by `sure` in its logit; colours exactly right."""
    names = {
        name: sure * torch.nn.functional.one_hot(labels.names[:, i].clamp(min=0), len(options)).float()
        for i, (name, options) in enumerate(QUESTIONS.items())
    }
    return Answers(names=names, colors=labels.colors.clone())


def test_the_loss_is_the_sum_over_questions_of_the_mean_over_things_asked() -> None:
    scenes = [scene_number(5, index) for index in range(8)]
    labels = ThingLabels.of(thing_labels(scenes), CPU)
    answers = _answers(labels, 1.5)
    answers.colors.add_(0.25)
    weights = torch.rand(len(labels.rows), generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for i, (name, options) in enumerate(QUESTIONS.items()):
        asked = (labels.names[:, i] != IGNORE).double()
        error = np.log(np.exp(1.5) + len(options) - 1) - 1.5 + POSITION_WEIGHT * 3 * 0.25**2 * (name in COLOR_PARTS)
        expected += float((weights * asked).sum() * error / asked.sum())
    torch.testing.assert_close(float(reading_loss(answers, labels, weights)), expected, rtol=1e-5, atol=0)


def test_what_is_not_asked_has_no_gradient() -> None:
    scene = _single()
    labels = ThingLabels.of(thing_labels([scene], [_said(scene, {"body"})]), CPU)
    names = {name: torch.zeros(1, len(options), requires_grad=True) for name, options in QUESTIONS.items()}
    colors = torch.zeros(1, 3, 3, requires_grad=True)
    reading_loss(Answers(names=names, colors=colors), labels).backward()
    assert {name for name, logits in names.items() if logits.grad is not None and logits.grad.any()} == {
        "class",
        "body",
    }
    assert colors.grad is not None
    assert colors.grad[0].any(1).tolist() == [True, False, False]


def test_nothing_asked_is_no_error() -> None:
    labels = ThingLabels.of(thing_labels([_single()], [None]), CPU)
    assert float(reading_loss(_answers(labels, 1.0), labels)) == 0


def test_the_weight_falls_with_the_noise_and_ends_where_the_answers_show() -> None:
    weights = noise_weights(torch.tensor([0.0, 0.05, 0.25, 5.0, 18.9, 19.0, 100.0]), full_snr=0.25, most_snr=19.0)
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.2, 1.0, 1.0, 1.0, 0.0, 0.0]))


def test_the_clean_estimate_inverts_v_prediction() -> None:
    scheduler = build_scheduler()
    generator = torch.Generator().manual_seed(1)
    latents, noise = (torch.randn(4, 16, 16, 16, generator=generator) for _ in range(2))
    at = torch.tensor([10, 300, 700, 999])
    noisy, velocity = scheduler.add_noise(latents, noise, at), scheduler.get_velocity(latents, noise, at)
    estimate = clean_estimate(noisy, velocity, scheduler.alphas_cumprod[at])
    torch.testing.assert_close(estimate, latents, rtol=1e-4, atol=1e-4)


def test_a_crop_shows_its_thing_whatever_its_place_and_size() -> None:
    ys, xs = torch.meshgrid(*[(torch.arange(16) + 0.5) / 16] * 2, indexing="ij")
    latents = torch.stack([xs, ys]).expand(3, 2, 16, 16)
    places = torch.tensor([[0.5, 0.5, 0.2], [0.3, 0.6, 0.1]])
    shown = crops(latents, torch.tensor([2, 0]), places)
    assert shown.shape == (2, 2, ROWS, COLUMNS)
    aside, up, down = REACH
    for crop, (x, y, size) in zip(shown, places.tolist(), strict=True):
        half = aside * size / COLUMNS  # from a crop's edge to the middle of its first cell
        torch.testing.assert_close(
            crop[0, 0, [0, -1]], torch.tensor([x - aside * size + half, x + aside * size - half])
        )
        half = (up + down) * size / ROWS / 2
        torch.testing.assert_close(crop[1, [0, -1], 0], torch.tensor([y - up * size + half, y + down * size - half]))


def _unchanged(latents: torch.Tensor, scenes: Any, rng: np.random.Generator) -> torch.Tensor:
    return latents


def test_spoiled_latents_are_a_function_of_the_generator() -> None:
    latents = torch.randn(30, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    scenes = [scene_number(5, index) for index in range(30)]
    recipe = ReaderRecipe()
    first, again = (spoiled(latents, scenes, _unchanged, recipe, np.random.default_rng(4)) for _ in range(2))
    assert torch.equal(first, again)
    away = (first - latents).flatten(1).std(1)
    assert (away[:10] == 0).all()  # those the U-Net estimates
    assert (away[10:] > 0).float().mean() > 0.6
    assert (away[10:] == 0).any()


def test_a_reader_learns_to_name_things() -> None:
    scenes = [scene_number(5, index) for index in range(24)]
    pictures = np.stack([np.asarray(render(scene)) for scene in scenes])
    code = PatchCode.fit(pictures)
    recipe = ReaderRecipe(steps=60, batch_size=24, noise=0.1, blurred_share=0.0, estimated_share=0.0)
    torch.manual_seed(0)
    model = ReaderNet(16)
    losses = [
        float(loss) for _, loss in train_reader(pictures, scenes.__getitem__, code, _unchanged, recipe, model, CPU)
    ]
    assert losses[-1] < 0.4 * losses[0]
    labels = ThingLabels.of(thing_labels(scenes), CPU)
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    shares = reader_shares(model, code.encode(pixels), labels)
    assert shares.keys() == {*QUESTIONS, *(f"{name} position" for name in COLOR_PARTS)}
    assert shares["class"] > 0.8
