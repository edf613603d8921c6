"""Attention maps of words: the maps, their means, and recording that leaves the base unchanged."""

import gc
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_adapters
import tiny_bases
from tara.adapters.adapter import Adapter
from tara.analysis.attention import ImageAttention, record_attention, rows_of_alternatives, subjects_of
from tara.analysis.recording import Recorder, WordMaps, recording
from tara.core.attention_maps import above_half_range, map_correlation, map_size, overlap, word_maps
from tara.errors import TaraError
from tara.families.base import Base
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.binding import bind
from tara.inference.pipeline import DenoisingStep, Pipeline
from tara.inference.request import GenerationRequest
from tara.inference.settings import GenerationSettings
from tara.inference.text_kv import CachedTextEncoder, compute_text_kv
from tara.report.overlays import heat_over

PROMPT = "a xlo dog and a szn cat on the beach"


def subjects(base: Base, **options: Any) -> list[Adapter]:
    """A dog and a cat for a tiny base."""
    words = (("xlo", "dog"), ("szn", "cat"))
    return [tiny_adapters.random_adapter(base, *pair, seed=seed, **options) for seed, pair in enumerate(words)]


def request(adapters: list[Adapter], seeds: tuple[int, ...] = (5,), **settings: Any) -> GenerationRequest:
    chosen = GenerationSettings(**settings)
    return GenerationRequest(prompt=PROMPT, adapters=tuple(map(ActiveAdapter, adapters)), seeds=seeds, settings=chosen)


@pytest.fixture(scope="module", params=["sd", "v", "sdxl"])
def base(request: pytest.FixtureRequest) -> Base:
    """A tiny base of each shape, which tests leave as it is."""
    if request.param == "sdxl":
        return Base(tiny_bases.sdxl_pipeline())
    return Base(tiny_bases.sd_pipeline("v_prediction" if request.param == "v" else "epsilon"))


@pytest.fixture(scope="module")
def sd_base() -> Base:
    return Base(tiny_bases.sd_pipeline())


def test_a_words_map_is_its_tokens_mean_attention_over_the_heads():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, size, 4, generator=generator) for size in (6, 5))
    maps = word_maps(query, key, [(1,), (2, 4)])
    for row in range(2):
        for position in range(6):
            wanted = np.zeros(5)
            for head in range(3):
                scores = [math.exp(float(query[row, head, position] @ key[row, head, k]) / 2) for k in range(5)]
                wanted += np.array(scores) / sum(scores) / 3
            assert float(maps[row, 0, position]) == pytest.approx(wanted[1], rel=1e-5)
            assert float(maps[row, 1, position]) == pytest.approx((wanted[2] + wanted[4]) / 2, rel=1e-5)


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


def test_map_correlation_is_that_of_the_values():
    one, other = torch.rand(4, 6), torch.rand(4, 6)
    wanted = np.corrcoef(one.flatten().double(), other.flatten().double())[0, 1]
    assert map_correlation(one, other) == map_correlation(other, one) == pytest.approx(wanted)


def test_map_correlation_does_not_depend_on_how_much_a_word_gets_everywhere():
    one, left, right = torch.rand(4, 6), torch.zeros(4, 6), torch.zeros(4, 6)
    left[:, :3], right[:, 3:] = 1, 1
    assert map_correlation(one, 3 * one + 7) == pytest.approx(1)
    assert map_correlation(left, right) == pytest.approx(-1)
    assert map_correlation(left, torch.ones(4, 6)) == 0


def test_overlap_compares_the_halves_over_half_of_each_range():
    one, other = torch.zeros(2, 4), torch.full((2, 4), 5.0)
    one[:, :2], other[:, 1:3] = 1, 9
    assert above_half_range(other).tolist() == [[False, True, True, False]] * 2
    assert overlap(one, other) == pytest.approx(1 / 3)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_image_is_the_same_to_the_last_bit(any_pipe: Any, guidance_scale: float):
    pipeline = Pipeline(any_pipe)
    adapters = subjects(pipeline.base, targets=tiny_adapters.ATTENTION)
    settings: dict[str, Any] = {"steps": 2, "guidance_scale": guidance_scale}
    plain = pipeline(PROMPT, adapters, seeds=[5, 6], **settings)
    recorded = record_attention(pipeline, request(adapters, (5, 6), **settings))
    assert [one.generated.image.tobytes() for one in recorded] == [image.tobytes() for image in plain]


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("stopped", [False, True])
def test_the_denoiser_is_restored(base: Base, stopped: bool, prepared: bool):
    if prepared:
        base.processors.install()
    before, hooks = base.denoiser.attn_processors, len(base.denoiser._forward_pre_hooks)

    def stop(step: DenoisingStep) -> None:
        if stopped:
            raise KeyboardInterrupt

    try:
        record_attention(Pipeline(base), request(subjects(base), steps=2), on_step=stop)
    except KeyboardInterrupt:
        assert stopped
    after = base.denoiser.attn_processors
    assert all(after[name] is processor for name, processor in before.items())
    assert all(getattr(processor, "watch", None) is None for processor in after.values())
    assert len(base.denoiser._forward_pre_hooks) == hooks
    base.processors.release()


def recorded(base: Base, seeds: tuple[int, ...] = (5,), **settings: Any) -> list[ImageAttention]:
    asked = request(subjects(base), seeds, **{"steps": 2, "guidance_scale": 3.0, **settings})
    return record_attention(Pipeline(base), asked)


def test_every_step_of_a_composer_of_several_evaluations_is_recorded(base: Base):
    (image,) = recorded(base, steps=3, composer="switch")
    assert {*image.maps.layers} == {*base.text_layers}
    assert image.maps.timesteps == tuple(sorted(image.maps.timesteps, reverse=True))
    assert bool((image.maps.steps.flatten(1).sum(1) > 0).all())


def test_maps_of_a_layer_have_its_shape_and_all_words(base: Base):
    (image,) = recorded(base, steps=3, width=48, height=32)
    assert {*image.maps.layers} == {*base.text_layers}
    assert {tuple(maps.shape) for maps in image.maps.layers.values()} == {(4, 16, 24), (4, 8, 12)}
    assert image.maps.steps.shape == (3, 4, 16, 24)
    assert image.maps.timesteps == tuple(sorted(image.maps.timesteps, reverse=True))
    assert 0 < float(image.maps.mean.min()) <= float(image.maps.mean.max()) < 1


@torch.no_grad()
def test_only_the_rows_that_read_the_prompt_are_recorded(base: Base):
    prompt = "a xlo dog"
    bound = bind(base.tokenize(prompt), [ActiveAdapter(subjects(base)[0])])
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    maps: list[WordMaps] = []
    base.processors.install()
    for texts, bindings in (([prompt], [bound]), (["", prompt], [[], bound])):
        encoding, recorder = base.encode(texts), Recorder([(2, 3), (4,)])
        conditioning = compute_text_kv(CachedTextEncoder(base), encoding, bindings)
        rows = len(texts)
        with recording(base, recorder):
            base.predict(latents.repeat(rows, 1, 1, 1), torch.full((rows,), 500), encoding, conditioning)
        maps += recorder.maps()
    base.processors.release()
    for layer, alone in maps[0].layers.items():
        torch.testing.assert_close(maps[1].layers[layer], alone, rtol=1e-4, atol=1e-6)


def test_images_of_one_batch_have_maps_of_their_own(base: Base):
    together = recorded(base, seeds=(5, 6))
    for seed, image in zip((5, 6), together, strict=True):
        (alone,) = recorded(base, seeds=(seed,))
        assert image.generated.seed == seed
        torch.testing.assert_close(image.maps.mean, alone.maps.mean, rtol=1e-3, atol=1e-6)
    assert not torch.equal(together[0].maps.mean, together[1].maps.mean)


def test_the_mean_over_layers_is_the_mean_of_the_layers_own(sd_base: Base):
    (image,) = recorded(sd_base)
    same = [maps for maps in image.maps.layers.values() if maps.shape[-1] == 16]
    smaller = [maps for maps in image.maps.layers.values() if maps.shape[-1] == 8]
    grown = torch.nn.functional.interpolate(torch.stack(smaller), size=(16, 16), mode="bilinear")
    torch.testing.assert_close(image.maps.mean, torch.cat([torch.stack(same), grown]).mean(0))


def tensors_in(kept: Any) -> Iterator[torch.Tensor]:
    """Every tensor that an object of ours keeps alive."""
    if isinstance(kept, torch.Tensor):
        yield kept
    elif not isinstance(kept, type):
        for part in gc.get_referents(kept):
            yield from tensors_in(part)


def test_what_is_kept_grows_with_layers_and_steps_alone():
    kept: list[list[int]] = []
    for heads in (4, 16):
        recorder = Recorder([(1,), (2,)])
        for _ in range(5):
            recorder.begin_call(torch.nn.Identity(), (torch.zeros(1, 4, 8, 8), 500), {})
            for layer in ("one", "other"):
                recorder(layer, torch.zeros(2, heads, 64, 3), torch.zeros(2, heads, 77, 3), None)
        kept.append([tensor.numel() for tensor in tensors_in(recorder)])
    assert kept == [[2 * 64] * (2 + 5)] * 2


def test_a_class_word_is_the_one_behind_its_own_rare_word(sd_base: Base):
    twins = [tiny_adapters.random_adapter(sd_base, word, "dog") for word in ("xlo", "rex")]
    prompt = sd_base.tokenize("a dog, a rex dog and a xlo big dog")
    found = subjects_of(prompt, [ActiveAdapter(twin) for twin in twins])
    texts = [
        [prompt.text[slice(*prompt.offsets[position])] for position in positions]
        for one in found
        for positions in (one.rare_positions, one.class_positions)
    ]
    assert texts == [["x", "lo"], ["dog"], ["rex"], ["dog"]]
    assert (
        found[0].class_positions[0]
        > found[0].rare_positions[-1]
        > found[1].class_positions[0]
        > found[1].rare_positions[-1]
    )


@pytest.mark.parametrize(
    ("prompt", "class_word", "part"),
    [
        ("a dog", "dog", "'xlo' is not in the prompt"),
        ("a xlo", "dog", "Write 'xlo dog'"),
        ("a xlo", "", ":class_word=dog"),
    ],
)
def test_a_missing_word_is_refused_by_name(sd_base: Base, prompt: str, class_word: str, part: str):
    active = ActiveAdapter(tiny_adapters.random_adapter(sd_base, class_word=class_word))
    with pytest.raises(TaraError, match=part):
        subjects_of(sd_base.tokenize(prompt), [active])


def test_adapters_of_the_same_words_are_in_rows_of_their_own(sd_base: Base):
    words = [("xlo", "dog"), ("szn", "cat"), ("XLO", "dog"), ("xlo", "cat")]
    dog, cat, other_dog, kitten = (ActiveAdapter(tiny_adapters.random_adapter(sd_base, *pair)) for pair in words)
    assert rows_of_alternatives([dog, cat]) == [(0, 1)]
    assert rows_of_alternatives([dog, kitten]) == [(0, 1)]  # one rare word, but two class words
    assert rows_of_alternatives([dog, cat, other_dog]) == [(0, 1), (2, 1)]
    with pytest.raises(TaraError, match="or the same number for each"):
        rows_of_alternatives([dog, dog, dog, cat, cat])


def test_heat_is_brightest_where_the_map_is_highest_and_shows_the_image_elsewhere():
    image = Image.new("RGB", (40, 40), (100, 100, 100))
    values = np.zeros((4, 4))
    values[1, 2] = 3e-3
    shown = np.asarray(heat_over(image, values)).sum(axis=-1)
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    assert (row // 10, column // 10) == (1, 2)
    assert np.asarray(heat_over(image, np.ones((4, 4)))).std() == 0
