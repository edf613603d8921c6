"""What words attend to: the maps, their means, and the recording that leaves no trace."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_adapters
import tiny_bases
from tara.adapters.adapter import Adapter
from tara.analysis.attention import Attended, attend, side_by_side, subjects_of
from tara.analysis.recording import Recorder, WordMaps, recording
from tara.core.attention_maps import alignment, map_size, overlap, region, word_maps
from tara.errors import TaraError
from tara.families.base import Base
from tara.inference.binding import ActiveAdapter, bind
from tara.inference.pipeline import Pipeline, SamplingStep
from tara.inference.text_kv import text_kv
from tara.report.heat import heat_over

PROMPT = "a xlo dog and a szn cat on the beach"


def subjects(pipe: Any, **options: Any) -> list[Adapter]:
    """A dog and a cat for a tiny base."""
    backbone = Base(pipe)
    words = (("xlo", "dog"), ("szn", "cat"))
    return [tiny_adapters.random_adapter(backbone, *pair, seed=seed, **options) for seed, pair in enumerate(words)]


def pixels(images: list[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_a_words_map_is_its_tokens_mean_attention_over_the_heads():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, size, 4, generator=generator) for size in (6, 5))
    found = word_maps(query, key, [(1,), (2, 4)])
    for row in range(2):
        for position in range(6):
            wanted = np.zeros(5)
            for head in range(3):
                scores = [math.exp(float(query[row, head, position] @ key[row, head, k]) / 2) for k in range(5)]
                wanted += np.array(scores) / sum(scores) / 3
            assert float(found[row, 0, position]) == pytest.approx(wanted[1], rel=1e-5)
            assert float(found[row, 1, position]) == pytest.approx((wanted[2] + wanted[4]) / 2, rel=1e-5)


def test_a_masked_token_is_attended_to_by_nobody():
    query, key = torch.randn(1, 2, 4, 3), torch.randn(1, 2, 3, 3)
    mask = torch.tensor([0.0, -torch.inf, 0.0]).view(1, 1, 1, 3)
    assert word_maps(query, key, [(1,)], mask).abs().max() == 0
    torch.testing.assert_close(word_maps(query, key, [(0,), (2,)], mask).sum(1), torch.ones(1, 4))


@pytest.mark.parametrize(
    ("positions", "latents", "size"),
    [(256, (16, 16), (16, 16)), (64, (16, 16), (8, 8)), (6 * 8, (12, 16), (6, 8)), (3 * 5, (5, 9), (3, 5))],
)
def test_a_feature_map_has_the_shape_of_the_halved_latents(
    positions: int, latents: tuple[int, int], size: tuple[int, int]
):
    assert map_size(positions, latents) == size


def test_alignment_is_the_correlation_of_two_maps():
    one, other = torch.rand(4, 6), torch.rand(4, 6)
    wanted = np.corrcoef(one.flatten().double(), other.flatten().double())[0, 1]
    assert alignment(one, other) == alignment(other, one) == pytest.approx(wanted)


def test_alignment_does_not_depend_on_how_much_a_word_gets_everywhere():
    one, left, right = torch.rand(4, 6), torch.zeros(4, 6), torch.zeros(4, 6)
    left[:, :3], right[:, 3:] = 1, 1
    assert alignment(one, 3 * one + 7) == pytest.approx(1)
    assert alignment(left, right) == pytest.approx(-1)
    assert alignment(left, torch.ones(4, 6)) == 0


def test_overlap_compares_the_halves_over_half_of_each_range():
    one, other = torch.zeros(2, 4), torch.full((2, 4), 5.0)
    one[:, :2], other[:, 1:3] = 1, 9
    assert region(other).tolist() == [[False, True, True, False]] * 2
    assert overlap(one, other) == pytest.approx(1 / 3)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_picture_is_the_same_to_the_last_bit(any_pipe: Any, guidance: float):
    pipeline, adapters = Pipeline(any_pipe), subjects(any_pipe, targets=tiny_adapters.ATTENTION)
    plain = pipeline(PROMPT, adapters, seeds=[5, 6], steps=2, guidance_scale=guidance)
    watched = attend(pipeline, PROMPT, adapters, seeds=[5, 6], steps=2, guidance_scale=guidance)
    assert pixels([one.picture.image for one in watched]) == pixels(plain)


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("stopped", [False, True])
def test_the_unet_is_left_as_it_was_found(any_pipe: Any, stopped: bool, prepared: bool):
    unet = any_pipe.unet
    if prepared:
        Base(any_pipe).install()
    before, hooks = unet.attn_processors, len(unet._forward_pre_hooks)

    def stop(step: SamplingStep) -> None:
        if stopped:
            raise KeyboardInterrupt

    try:
        attend(Pipeline(any_pipe), PROMPT, subjects(any_pipe), steps=2, on_step=stop)
    except KeyboardInterrupt:
        assert stopped
    assert all(unet.attn_processors[name] is processor for name, processor in before.items())
    assert all(getattr(processor, "watch", None) is None for processor in unet.attn_processors.values())
    assert len(unet._forward_pre_hooks) == hooks


def recorded(pipe: Any, guidance: float, seeds: tuple[int, ...] = (5,), **settings: Any) -> list[Attended]:
    return attend(Pipeline(pipe), PROMPT, subjects(pipe), seeds, steps=3, guidance_scale=guidance, **settings)


def test_maps_of_a_layer_have_its_shape_and_all_words(any_pipe: Any):
    (attended,) = recorded(any_pipe, 3.0, width=48, height=32)
    assert {*attended.maps.layers} == {*Base(any_pipe).text_layers}
    assert {tuple(maps.shape) for maps in attended.maps.layers.values()} == {(4, 16, 24), (4, 8, 12)}
    assert attended.maps.steps.shape == (3, 4, 16, 24)
    assert attended.maps.timesteps == tuple(sorted(attended.maps.timesteps, reverse=True))
    assert 0 < float(attended.maps.mean.min()) <= float(attended.maps.mean.max()) < 1


@torch.no_grad()
def test_only_the_rows_that_read_the_prompt_are_recorded(any_pipe: Any):
    backbone, prompt = Base(any_pipe), "a xlo dog"
    bound = bind(backbone.tokenize(prompt), [ActiveAdapter(subjects(any_pipe)[0])])
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    found: list[WordMaps] = []
    for texts, bindings in (([prompt], [bound]), (["", prompt], [[], bound])):
        encoding, recorder = backbone.encode(texts), Recorder([(2, 3), (4,)])
        conditioning = text_kv(backbone, encoding, bindings)
        rows = len(texts)
        with recording(any_pipe.unet, recorder):
            backbone.predict(latents.repeat(rows, 1, 1, 1), torch.full((rows,), 500), encoding, conditioning)
        found += recorder.maps()
    for layer, maps in found[0].layers.items():
        torch.testing.assert_close(found[1].layers[layer], maps, rtol=1e-4, atol=1e-6)


def test_pictures_of_one_batch_have_maps_of_their_own(any_pipe: Any):
    together = recorded(any_pipe, 3.0, seeds=(5, 6))
    for seed, attended in zip((5, 6), together, strict=True):
        (alone,) = recorded(any_pipe, 3.0, seeds=(seed,))
        assert attended.picture.seed == seed
        torch.testing.assert_close(attended.maps.mean, alone.maps.mean, rtol=1e-3, atol=1e-6)
    assert not torch.equal(together[0].maps.mean, together[1].maps.mean)


def test_the_mean_over_layers_is_the_mean_of_the_layers_own():
    pipe = tiny_bases.sd_pipeline()
    (attended,) = recorded(pipe, 3.0)
    same = [maps for maps in attended.maps.layers.values() if maps.shape[-1] == 16]
    smaller = [maps for maps in attended.maps.layers.values() if maps.shape[-1] == 8]
    grown = torch.nn.functional.interpolate(torch.stack(smaller), size=(16, 16), mode="bilinear")
    torch.testing.assert_close(attended.maps.mean, torch.cat([torch.stack(same), grown]).mean(0))


def test_what_is_kept_grows_with_layers_and_steps_alone():
    kept: list[int] = []
    for heads in (4, 16):
        recorder = Recorder([(1,), (2,)])
        for _ in range(5):
            recorder.begin_call(torch.nn.Identity(), (torch.zeros(1, 4, 8, 8), 500), {})
            for layer in ("one", "other"):
                recorder(layer, torch.zeros(2, heads, 64, 3), torch.zeros(2, heads, 77, 3), None)
        means = [*recorder._layers.values(), *recorder._steps]
        assert len(means) == 2 + 5
        kept.append(sum(mean.mean.numel() for mean in means))
    assert kept == [7 * 2 * 64] * 2


def test_a_class_word_is_the_one_behind_its_own_rare_word(sd_pipe: Any):
    backbone = Base(sd_pipe)
    twins = [tiny_adapters.random_adapter(backbone, word, "dog") for word in ("xlo", "rex")]
    prompt = backbone.tokenize("a dog, a rex dog and a xlo big dog")
    found = subjects_of(prompt, [ActiveAdapter(twin) for twin in twins])
    texts = [
        [prompt.text[slice(*prompt.offsets[position])] for position in positions]
        for one in found
        for positions in (one.rare, one.class_word)
    ]
    assert texts == [["x", "lo"], ["dog"], ["rex"], ["dog"]]
    assert found[0].class_word[0] > found[0].rare[-1] > found[1].class_word[0] > found[1].rare[-1]


@pytest.mark.parametrize(
    ("prompt", "class_word", "part"),
    [
        ("a dog", "dog", "'xlo' is not in the prompt"),
        ("a xlo", "dog", "Write 'xlo dog'"),
        ("a xlo", "", ":class_word=dog"),
    ],
)
def test_a_missing_word_is_refused_by_name(sd_pipe: Any, prompt: str, kind: str, part: str):
    backbone = Base(sd_pipe)
    active = ActiveAdapter(tiny_adapters.random_adapter(backbone, class_word=kind))
    with pytest.raises(TaraError, match=part):
        subjects_of(backbone.tokenize(prompt), [active])


def test_adapters_of_the_same_words_are_drawn_beside_each_other(sd_pipe: Any):
    backbone = Base(sd_pipe)
    words = [("xlo", "dog"), ("szn", "cat"), ("XLO", "dog"), ("xlo", "cat")]
    dog, cat, other_dog, kitten = (ActiveAdapter(tiny_adapters.random_adapter(backbone, *pair)) for pair in words)
    assert side_by_side([dog, cat]) == [(dog, cat)]
    assert side_by_side([dog, kitten]) == [(dog, kitten)]  # told apart by their class words
    assert side_by_side([dog, cat, other_dog]) == [(dog, cat), (other_dog, cat)]
    with pytest.raises(TaraError, match="or as many for each"):
        side_by_side([dog, dog, dog, cat, cat])


def test_heat_is_brightest_where_the_map_is_highest_and_shows_the_picture_elsewhere():
    image = Image.new("RGB", (40, 40), (100, 100, 100))
    values = np.zeros((4, 4))
    values[1, 2] = 3e-3
    shown = np.asarray(heat_over(image, values)).sum(axis=-1)
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    assert (row // 10, column // 10) == (1, 2)
    assert np.asarray(heat_over(image, np.ones((4, 4)))).std() == 0
