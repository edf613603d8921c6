"""Adapters in regions against a plain formula: dense masks over every cell, one product for each adapter."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import tara
import tiny_adapters
import tiny_bases
from tara.adapters.adapter import Adapter
from tara.core.lora import LowRank
from tara.core.regions import labels_at
from tara.errors import TaraError, TaraWarning
from tara.families.base import Base
from tara.families.processors import CONDITIONING_KEY
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.composers import COMPOSERS
from tara.inference.confining import LAYOUT, ConfinedAdapter, ConfinedAdapters, confined
from tara.inference.request import parse_regions
from tara.inference.settings import GenerationSettings
from tiny_adapters import ATTENTION, CROSS_KV

PROMPT = "a xlo dog and a szn cat"
GUIDANCE, STEPS = 3.0, 5


class DenseMasks:
    """Attention by definition: ``W x + sum_c m_c (w_c s_c B_c A_c x)``; each cell's query meets its region's keys."""

    def __init__(self, layer: str, adapters: Sequence[ActiveAdapter], masks: dict[int, Tensor]) -> None:
        self.layer, self.adapters, self.masks = layer, adapters, masks

    def deltas(self, name: str, x: Tensor) -> list[Tensor]:
        layers = [(one.weight, one.adapter.layers[f"{self.layer}.{name}"]) for one in self.adapters]
        return [weight * (x @ delta.dense().T) for weight, delta in layers]

    def __call__(self, attn: Any, x: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Tensor:
        masks = self.masks[x.shape[1]][:, None, :, None]  # (adapters, 1, positions, 1)

        def projected(name: str, module: nn.Module, x: Tensor) -> Tensor:
            return module(x) + sum(mask * delta for mask, delta in zip(masks, self.deltas(name, x), strict=True))

        def attended(key: Tensor, value: Tensor) -> Tensor:
            heads = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (query, key, value))
            return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)

        query = projected("to_q", attn.to_q, x)
        if encoder_hidden_states is None:
            out = attended(projected("to_k", attn.to_k, x), projected("to_v", attn.to_v, x))
        else:
            text = encoder_hidden_states
            keys, values = attn.to_k(text), attn.to_v(text)
            out = (1 - masks.sum(0)) * attended(keys, values)
            for mask, k, v in zip(masks, self.deltas("to_k", text), self.deltas("to_v", text), strict=True):
                out = out + mask * attended(keys + k, values + v)
        return projected("to_out.0", attn.to_out[0], out)


def _noise(seed: int = 0) -> Tensor:
    return torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def _masks(labels: Tensor, count: int) -> dict[int, Tensor]:
    at = {side * side: labels_at(labels, (side, side)).flatten() for side in (16, 8)}
    return {size: torch.stack([(of == number).float() for number in range(1, count + 1)]) for size, of in at.items()}


@torch.no_grad()
def _by_definition(pipe: Any, adapters: Sequence[ActiveAdapter], labels: Tensor, layout: bool = True) -> Tensor:
    base, latents = Base(pipe), _noise()
    empty, text = base.encode_negative(None), base.encode([PROMPT])
    stock = dict(pipe.unet.attn_processors)
    masks = _masks(labels, len(adapters))
    dense = {path: DenseMasks(path.removesuffix(".processor"), adapters, masks) for path in stock}
    pipe.scheduler.set_timesteps(STEPS)
    for step, timestep in enumerate(pipe.scheduler.timesteps):
        without_adapters = layout and (step == 0 or timestep >= LAYOUT * 1000)
        pipe.unet.set_attn_processor(dict(stock) if without_adapters else dict(dense))
        without, given = (base.predict(latents, timestep[None], one) for one in (empty, text))
        latents = pipe.scheduler.step(without + GUIDANCE * (given - without), timestep, latents).prev_sample
    pipe.unet.set_attn_processor(stock)
    return latents


def _generated(
    pipe: Any, adapters: Sequence[Adapter | ActiveAdapter], prompt: str = PROMPT, **settings: Any
) -> tuple[Tensor, ConfinedAdapters]:
    with tara.prepared(pipe, prompt, adapters, composer="regions", guidance_scale=GUIDANCE, **settings) as arguments:
        latents = pipe(**arguments, num_inference_steps=STEPS, latents=_noise(), output_type="latent").images
        return latents, arguments["cross_attention_kwargs"][CONDITIONING_KEY].regional


def _two(pipe: Any, **options: Any) -> list[ActiveAdapter]:
    words = (("xlo", "dog", 1.0), ("szn", "cat", 0.7))
    given = {"targets": ATTENTION, "strength": 0.1} | options
    return [
        ActiveAdapter(tiny_adapters.random_adapter(Base(pipe), word, kind, seed=seed, **given), weight)
        for seed, (word, kind, weight) in enumerate(words)
    ]


@pytest.fixture(params=[tiny_bases.sd_pipeline, tiny_bases.sdxl_pipeline], ids=["sd", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return request.param()


def test_each_adapter_acts_at_the_cells_of_its_region_only(pipe: Any) -> None:
    adapters = _two(pipe)
    ours, regions = _generated(pipe, adapters)
    assert {1, 2} <= set(regions.labels[0].unique().tolist())
    theirs = _by_definition(pipe, adapters, regions.labels[0])
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    swapped = _by_definition(pipe, adapters, 3 - regions.labels[0])
    assert (theirs - swapped).abs().max() > 0.05  # the place matters


def test_a_second_image_finds_its_own_regions(sd_pipe: Any) -> None:
    adapters = _two(sd_pipe)
    with tara.prepared(sd_pipe, PROMPT, adapters, composer="regions") as arguments:
        first, second, again = (
            sd_pipe(**arguments, num_inference_steps=STEPS, latents=_noise(seed), output_type="latent").images
            for seed in (0, 1, 0)
        )
    torch.testing.assert_close(first, again)
    assert not math.isclose(float(first.std()), float(second.std()))


def test_rows_with_other_adapters_in_one_batch_are_generated_as_if_alone(sd_pipe: Any) -> None:
    one, other = _two(sd_pipe)
    pipeline = tara.Pipeline(sd_pipe)
    prompts, adapters = [PROMPT, "a szn cat"], [[one, other], [other]]
    together = pipeline(prompts, adapters, steps=STEPS, composer="regions")
    for prompt, own, image in zip(prompts, adapters, together, strict=True):
        (alone,) = pipeline([prompt], [own], steps=STEPS, composer="regions")
        assert max(abs(a - b) for a, b in zip(alone.tobytes(), image.tobytes(), strict=True)) <= 1


def test_prepare_without_a_block_refuses_regions(sd_pipe: Any) -> None:
    with pytest.raises(TaraError, match=r"with tara\.prepared"):
        tara.prepare(sd_pipe, PROMPT, _two(sd_pipe), composer="regions")


def test_a_prompt_without_the_class_word_is_warned_of_and_its_rare_word_stands_in(sd_pipe: Any) -> None:
    with pytest.warns(UserWarning, match="'dog', which is not in the prompt"):
        _generated(sd_pipe, _two(sd_pipe), "a xlo and a szn cat")


def test_a_given_region_holds_from_the_first_step_and_the_others_are_found_around_it(pipe: Any) -> None:
    adapters = _two(pipe)
    ours, regions = _generated(pipe, adapters, region=("xlo=0,0,0.25,1",))
    expected = torch.full((16, 16), 2)
    expected[:, :4] = 1
    assert torch.equal(regions.labels[0], expected)
    given, _ = _generated(pipe, adapters, region=("xlo=0,0,0.25,1", "szn=0.25,0,1,1"))
    torch.testing.assert_close(ours, _by_definition(pipe, adapters, expected), rtol=1e-3, atol=1e-3)
    theirs = _by_definition(pipe, adapters, expected, layout=False)
    torch.testing.assert_close(given, theirs, rtol=1e-3, atol=1e-3)


def test_a_mask_image_is_a_region(sd_pipe: Any, tmp_path: Path) -> None:
    mask = Image.new("L", (64, 32), 0)
    mask.paste(255, (0, 0, 64, 16))
    mask.save(tmp_path / "mask.png")
    _, regions = _generated(sd_pipe, _two(sd_pipe), region=(f"xlo={tmp_path / 'mask.png'}", "szn=bottom"))
    labels = regions.regions_of(0).labels
    assert torch.equal(labels, torch.tensor([1] * 8 + [2] * 8)[:, None].expand(16, 16))


def test_an_adapter_everywhere_is_in_no_region(sd_pipe: Any) -> None:
    _, regions = _generated(sd_pipe, _two(sd_pipe), region=("szn=everywhere", "xlo=left"))
    assert regions.regions_of(0).words == ("xlo",)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        (("xlo",), "not of the form WORD=REGION"),
        (("xlp=left",), "no adapter's rare word. Did you mean 'xlo'"),
        (("xlo=lefft",), "Did you mean 'left'"),
        (("xlo=0,0,1.5,1",), "not inside the image"),
        (("xlo=0.5,0,0.5,1",), "not inside the image"),
        (("xlo=0,0,0.6,1", "szn=right"), "'xlo' and 'szn' overlap"),
        (("xlo=0.001,0,0.002,1",), "is empty"),
    ],
)
def test_regions_that_cannot_be_are_refused(sd_pipe: Any, regions: tuple[str, ...], message: str) -> None:
    with pytest.raises(TaraError, match=message):
        _generated(sd_pipe, _two(sd_pipe), region=regions)


def test_regions_need_their_composer(sd_pipe: Any) -> None:
    with pytest.raises(TaraError, match="region needs the composer 'regions'"):
        tara.Pipeline(sd_pipe)(PROMPT, _two(sd_pipe), composer="tara", region=["xlo=left"])


def test_all_parts_of_a_file_act_in_the_region_only(sd_pipe: Any) -> None:
    """With the left half given and a receptive field of one cell, only feed-forward and convolution deltas are left."""
    layers = {"mid_block.resnets.0.conv1": (3, 3), "mid_block.attentions.0.transformer_blocks.0.ff.net.2": None}
    base = Base(sd_pipe)
    x = torch.randn(1, 32, 8, 8)
    for path, kernel in layers.items():
        d_in, d_out = base.projection_sizes(path)
        delta = LowRank(torch.randn(2, d_in), torch.randn(d_out, 2), 0.5, kernel)
        adapter = Adapter(_two(sd_pipe)[0].adapter.card, {path: delta}, name="one")
        concept = ConfinedAdapter(ActiveAdapter(adapter), (), parse_regions(["xlo=left"], ["xlo"])["xlo"])
        state = ConfinedAdapters(base, [[concept]], guided=False)
        module = base.layer(path)
        inputs = x if kernel else torch.randn(1, 64, d_in)
        with confined(base, state):
            state.begin_call(
                module, (torch.zeros(1, 4, 16, 16), 500), {"cross_attention_kwargs": {CONDITIONING_KEY: _Text(state)}}
            )
            ours = module(inputs)
        plain = module(inputs)
        weight = delta.dense().view_as(module.weight)
        moved = F.conv2d(inputs, weight, padding=1) if kernel else inputs @ weight.T
        change = (ours - plain).unflatten(1, (8, 8)) if kernel is None else (ours - plain).movedim(1, -1)
        moved = moved.unflatten(1, (8, 8)) if kernel is None else moved.movedim(1, -1)
        torch.testing.assert_close(change[:, :, :4], moved[:, :, :4], rtol=1e-3, atol=1e-4)
        assert not change[:, :, 4:].any()


def test_a_delta_of_a_layer_without_a_place_in_the_image_is_left_out_with_a_note(sd_pipe: Any) -> None:
    base, path = Base(sd_pipe), "mid_block.resnets.0.time_emb_proj"
    d_in, d_out = base.projection_sizes(path)
    adapter = Adapter(_two(sd_pipe)[0].adapter.card, {path: LowRank(torch.ones(2, d_in), torch.ones(d_out, 2), 1.0)})
    concept = ConfinedAdapter(ActiveAdapter(adapter), (), parse_regions(["xlo=left"], ["xlo"])["xlo"])
    state, module, inputs = ConfinedAdapters(base, [[concept]], guided=False), base.layer(path), torch.randn(1, d_in)
    with confined(base, state):
        state.begin_call(
            module, (torch.zeros(1, 4, 16, 16), 500), {"cross_attention_kwargs": {CONDITIONING_KEY: _Text(state)}}
        )
        with pytest.warns(TaraWarning, match="one value for the whole image"):
            ours = module(inputs)
    assert torch.equal(ours, module(inputs))


class _Text:
    def __init__(self, regional: ConfinedAdapters) -> None:
        self.regional = regional


def test_regions_are_the_default_when_one_of_several_subjects_has_a_global_part(
    sd_pipe: Any,
) -> None:
    everywhere, on_text = _two(sd_pipe), _two(sd_pipe, targets=CROSS_KV)
    style = ActiveAdapter(tiny_adapters.random_adapter(Base(sd_pipe), "ruv", "style", targets=ATTENTION))
    default = GenerationSettings().composer_for
    assert default((everywhere[0], on_text[1])) is COMPOSERS["regions"]
    assert default(tuple(on_text)) is COMPOSERS["tara"]
    assert default((everywhere[0],)) is COMPOSERS["tara"]
    assert default((on_text[0], style)) is COMPOSERS["tara"]
    assert GenerationSettings(region=("xlo=left",)).composer_for(tuple(on_text)) is COMPOSERS["regions"]
    assert GenerationSettings(composer="sum").composer_for(tuple(everywhere)) is COMPOSERS["sum"]
