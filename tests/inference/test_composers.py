"""Each composer against a plain formula: stock U-Nets with dense weights, denoised step by step."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft.utils.merge_utils import dare_linear, ties
from torch import Tensor

import tara
import tiny_adapters
import tiny_bases
from tara.adapters.adapter import Adapter
from tara.core.lora import LowRank
from tara.errors import TaraError
from tara.families.base import Base
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.composers import COMPOSERS, Composer, replace_rare_words
from tara.inference.composers.sequential import switch_every
from tara.inference.pipeline import DenoisingStep, Pipeline
from tiny_adapters import ATTENTION, CROSS_KV

PROMPT = "a xlo dog and a szn cat"
STEPS, GUIDANCE = 3, 3.0
PREDICTIONS = {"sd": "epsilon", "v": "v_prediction"}
Deltas = Mapping[str, Tensor]


def _two(pipe: Any, targets: tuple[str, ...] = ATTENTION) -> list[ActiveAdapter]:
    words = [("xlo", "dog", 1.0), ("szn", "cat", 0.7)]
    return [
        ActiveAdapter(
            tiny_adapters.random_adapter(Base(pipe), word, kind, targets=targets, strength=0.1, seed=seed), weight
        )
        for seed, (word, kind, weight) in enumerate(words)
    ]


@pytest.fixture(params=[("sd", CROSS_KV), ("v", ATTENTION), ("sdxl", ATTENTION)], ids=lambda case: case[0])
def case(request: pytest.FixtureRequest) -> tuple[Any, list[ActiveAdapter]]:
    """A base of each shape, and two adapters for it: on text keys and values, or on all attention projections too."""
    shape, targets = request.param
    pipe = tiny_bases.sdxl_pipeline() if shape == "sdxl" else tiny_bases.sd_pipeline(PREDICTIONS[shape])
    return pipe, _two(pipe, targets)


@pytest.fixture
def pipe(case: tuple[Any, list[ActiveAdapter]]) -> Any:
    return case[0]


@pytest.fixture
def active_adapters(case: tuple[Any, list[ActiveAdapter]]) -> list[ActiveAdapter]:
    return case[1]


def _dense(active: ActiveAdapter) -> dict[str, Tensor]:
    return {path: active.weight * delta.dense() for path, delta in active.adapter.layers.items()}


@contextmanager
def _heavier(unet: Any, deltas: Deltas) -> Generator[None]:
    weights = [(unet.get_submodule(path).weight, delta) for path, delta in deltas.items()]
    for weight, delta in weights:
        weight += delta
    yield
    for weight, delta in weights:
        weight -= delta


def _noise() -> Tensor:
    return torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _denoised(pipe: Any, prompt: str, deltas_of: Callable[[int], Sequence[Deltas]]) -> Tensor:
    """Latents: at each step the mean of the guided scores of stock U-Nets that have these deltas in their weights."""
    base, latents = Base(pipe), _noise()
    empty, text = base.encode_negative(None), base.encode([prompt])
    pipe.scheduler.set_timesteps(STEPS)
    for step, timestep in enumerate(pipe.scheduler.timesteps):
        scores: list[Tensor] = []
        for deltas in deltas_of(step):
            with _heavier(pipe.unet, deltas):
                without, with_text = (base.predict(latents, timestep[None], each) for each in (empty, text))
            scores.append(without + GUIDANCE * (with_text - without))
        latents = pipe.scheduler.step(sum(scores) / len(scores), timestep, latents).prev_sample
    return latents


def _generated(pipe: Any, active_adapters: Sequence[ActiveAdapter], composer: str | Composer, times: int = 1) -> Tensor:
    with tara.prepared(pipe, PROMPT, active_adapters, composer=composer, guidance_scale=GUIDANCE) as arguments:
        for _ in range(times):
            found = pipe(**arguments, num_inference_steps=STEPS, latents=_noise(), output_type="latent").images
    return found


def _close(ours: Tensor, theirs: Tensor, base: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert (theirs - base).abs().max() > 0.05  # the adapters matter


def _base(pipe: Any) -> Tensor:
    return _denoised(pipe, PROMPT, lambda _: [{}])


def test_sum_is_the_u_net_with_all_dense_deltas_added_to_its_weights(
    pipe: Any, active_adapters: list[ActiveAdapter]
) -> None:
    one, other = map(_dense, active_adapters)
    theirs = _denoised(pipe, PROMPT, lambda _: [{path: one[path] + other[path] for path in one}])
    _close(_generated(pipe, active_adapters, "sum"), theirs, _base(pipe))


def test_switch_takes_one_adapter_per_step_in_turn_and_begins_anew_with_each_image(
    pipe: Any, active_adapters: list[ActiveAdapter]
) -> None:
    deltas = [_dense(active) for active in active_adapters]
    theirs = _denoised(pipe, PROMPT, lambda step: [deltas[step % 2]])
    _close(_generated(pipe, active_adapters, "switch"), theirs, _base(pipe))
    torch.testing.assert_close(_generated(pipe, active_adapters, "switch", times=2), theirs, rtol=1e-3, atol=1e-3)


def test_switch_can_leave_each_adapter_several_steps_as_its_authors_do(sd_pipe: StableDiffusionPipeline) -> None:
    active_adapters = _two(sd_pipe)
    deltas = [_dense(active) for active in active_adapters]
    theirs = _denoised(sd_pipe, PROMPT, lambda step: [deltas[step // 2 % 2]])
    _close(
        _generated(sd_pipe, active_adapters, switch_every(2)),
        theirs,
        _denoised(sd_pipe, PROMPT, lambda step: [deltas[step % 2]]),
    )


def test_composites_score_is_the_mean_of_separately_guided_ones(
    pipe: Any, active_adapters: list[ActiveAdapter]
) -> None:
    deltas = [_dense(active) for active in active_adapters]
    _close(_generated(pipe, active_adapters, "composite"), _denoised(pipe, PROMPT, lambda _: deltas), _base(pipe))


def test_ties_adds_pefts_merge_of_the_dense_deltas(pipe: Any, active_adapters: list[ActiveAdapter]) -> None:
    layers, weights = (
        [active.adapter.layers for active in active_adapters],
        torch.tensor([active.weight for active in active_adapters]),
    )
    merged = {path: ties([each[path].dense() for each in layers], weights, 0.2) for path in layers[0]}
    _close(_generated(pipe, active_adapters, "ties"), _denoised(pipe, PROMPT, lambda _: [merged]), _base(pipe))


def test_dare_adds_pefts_merge_of_the_dense_deltas(pipe: Any, active_adapters: list[ActiveAdapter]) -> None:
    xlo, szn = active_adapters
    layers, weights = (szn.adapter.layers, xlo.adapter.layers), torch.tensor([szn.weight, xlo.weight])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # one chance for all layers, in the order of their names
        merged = {
            path: dare_linear([each[path].dense() for each in layers], weights, 0.5) for path in sorted(layers[0])
        }
    _close(_generated(pipe, [xlo, szn], "dare"), _denoised(pipe, PROMPT, lambda _: [merged]), _base(pipe))


def test_none_is_the_stock_image_of_the_class_words(pipe: Any, active_adapters: list[ActiveAdapter]) -> None:
    ours = _generated(pipe, active_adapters, "none")
    torch.testing.assert_close(ours, _denoised(pipe, "a dog and a cat", lambda _: [{}]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a xlo dog and a szn cat", "a dog and a cat"),
        ("A XLO  Dog, two xlo dogs and szn cat", "A Dog, two dogs and cat"),
        ("xlo and szn's cat", "dog and cat's cat"),
        ("a red dog like xlo, a szn\ncat", "a red dog like dog, a cat"),
    ],
)
def test_class_words_stand_where_rare_words_stood(prompt: str, expected: str, sd_pipe: StableDiffusionPipeline) -> None:
    assert replace_rare_words(prompt, tuple(_two(sd_pipe))) == expected


def test_an_unnamed_lora_leaves_nothing_where_its_word_stood(sd_pipe: StableDiffusionPipeline) -> None:
    plain = ActiveAdapter(tiny_adapters.random_adapter(Base(sd_pipe), "", ""), rare_word="pxl")
    assert replace_rare_words("a house in pxl style", (plain,)) == "a house in style"
    with pytest.raises(TaraError, match="'pxl' is not in the prompt"):
        replace_rare_words("a house", (plain,))


@pytest.mark.parametrize("composer", ["tara", "sum", "composite", "ties", "dare", "none"])
def test_the_order_of_the_adapters_changes_nothing_to_the_last_bit(
    composer: str, sd_pipe: StableDiffusionPipeline
) -> None:
    active_adapters = _two(sd_pipe)
    assert torch.equal(
        _generated(sd_pipe, active_adapters, composer), _generated(sd_pipe, active_adapters[::-1], composer)
    )


def test_switch_begins_with_the_adapter_that_is_given_first(sd_pipe: StableDiffusionPipeline) -> None:
    active_adapters, pipeline = _two(sd_pipe), Pipeline(sd_pipe)
    for first, second in (active_adapters, active_adapters[::-1]):
        one_step, alone = (
            np.asarray(pipeline(PROMPT, adapters, steps=1, composer=composer)[0], dtype=int)
            for adapters, composer in (([first, second], "switch"), ([first], "sum"))
        )
        assert np.abs(one_step - alone).max() <= 1


def _state(unet: Any) -> dict[str, Any]:
    """Everything about a U-Net that a composer could leave changed; weights by place, so that none is a copy."""
    return {
        "weights": [(name, weight.data_ptr(), weight.sum().item()) for name, weight in unet.named_parameters()],
        "processors": list(unet.attn_processors.values()),
        "forward": unet.__dict__.get("forward"),
        "attributes": sorted(unet.__dict__),
        "hooks": [(len(unet._forward_hooks), len(unet._forward_pre_hooks)), len(unet.conv_in._forward_hooks)],
        "chance": torch.get_rng_state().tolist(),
    }


@pytest.mark.parametrize("composer", COMPOSERS)
@pytest.mark.parametrize(("stopped", "offloaded"), [(False, True), (True, False)])
def test_the_u_net_is_as_it_was_after_every_composer_also_after_an_exception(
    composer: str, stopped: bool, offloaded: bool, sdxl_pipe: StableDiffusionXLPipeline
) -> None:
    if offloaded:  # accelerate's hooks put a forward of their own on the module
        own = sdxl_pipe.unet.forward
        sdxl_pipe.unet.forward = lambda *args, **kwargs: own(*args, **kwargs)
    active_adapters, before = _two(sdxl_pipe), _state(sdxl_pipe.unet)

    def on_step(step: DenoisingStep) -> None:
        if stopped and step.step == 2:
            raise KeyboardInterrupt

    try:
        Pipeline(sdxl_pipe)(PROMPT, active_adapters, steps=STEPS, composer=composer, on_step=on_step)
    except KeyboardInterrupt:
        assert stopped
    assert _state(sdxl_pipe.unet) == before


def test_an_exception_inside_an_evaluation_leaves_the_weights_alone(sd_pipe: StableDiffusionPipeline) -> None:
    active_adapters, before = _two(sd_pipe), _state(sd_pipe.unet)

    def fail(*_: object) -> None:
        raise RuntimeError("inside")

    hook = sd_pipe.unet.mid_block.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="inside"):
        _generated(sd_pipe, active_adapters, "composite")
    hook.remove()
    assert _state(sd_pipe.unet) == before


@torch.no_grad()
def test_a_call_without_prepared_text_is_left_alone(sd_pipe: StableDiffusionPipeline) -> None:
    base = Base(sd_pipe)
    call = _noise(), torch.tensor([500]), base.encode([PROMPT])
    stock = base.predict(*call)
    with tara.prepared(sd_pipe, PROMPT, _two(sd_pipe), composer="composite"):
        assert torch.equal(base.predict(*call), stock)


def _with_text(pipe: Any, word: str, kind: str, seed: int) -> Adapter:
    adapter = tiny_adapters.random_adapter(Base(pipe), word, kind, targets=ATTENTION, strength=0.1, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, LowRank] = {}
    for name in ("text_encoder", "text_encoder_2"):
        encoder = getattr(pipe, name, None)
        if encoder is not None:
            width = encoder.config.hidden_size
            a, b = (torch.randn(shape, generator=generator) for shape in ((2, width), (width, 2)))
            layers[f"{name}.text_model.encoder.layers.0.self_attn.q_proj"] = LowRank(a, b, 0.3)
    return Adapter(adapter.card, adapter.layers, adapter.name, text_layers=layers)


@torch.no_grad()
def _predicted(pipe: Any, adapters: Sequence[Adapter], composer: str) -> Tensor:
    with tara.prepared(pipe, PROMPT, adapters, composer=composer, guidance_scale=1.0) as arguments:
        added = {
            "text_embeds": arguments.get("pooled_prompt_embeds"),
            "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]]),
        }
        return pipe.unet(
            _noise(),
            500,
            arguments["prompt_embeds"],
            cross_attention_kwargs=arguments["cross_attention_kwargs"],
            added_cond_kwargs=added,
            return_dict=False,
        )[0]


def test_each_evaluation_has_its_own_text_encoders_also_in_the_pooled_vector(any_pipe: Any) -> None:
    adapters = [_with_text(any_pipe, "xlo", "dog", 1), _with_text(any_pipe, "szn", "cat", 2)]
    alone = [_predicted(any_pipe, [adapter], "sum") for adapter in adapters]
    assert (alone[0] - alone[1]).abs().max() > 1e-2
    torch.testing.assert_close(
        _predicted(any_pipe, adapters, "composite"), (alone[0] + alone[1]) / 2, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(_predicted(any_pipe, adapters[::-1], "switch"), alone[1], rtol=1e-4, atol=1e-5)


def test_text_encoders_deltas_are_merged_too(sd_pipe: StableDiffusionPipeline) -> None:
    adapters = [_with_text(sd_pipe, "xlo", "dog", 1), _with_text(sd_pipe, "szn", "cat", 2)]
    (merged,) = COMPOSERS["ties"].adapters(tuple(map(ActiveAdapter, adapters)))
    ((path, delta),) = merged.adapter.text_layers.items()
    expected = ties([adapter.text_layers[path].dense() for adapter in adapters], torch.ones(2), 0.2)
    torch.testing.assert_close(delta.dense(), expected, rtol=0, atol=0)


def test_an_adapter_of_weight_zero_has_no_vote_in_a_merge(sd_pipe: StableDiffusionPipeline) -> None:
    xlo, szn = _two(sd_pipe)
    off = ActiveAdapter(szn.adapter, weight=0.0)
    assert torch.equal(_generated(sd_pipe, [xlo, off], "ties"), _generated(sd_pipe, [xlo], "ties"))


@pytest.mark.parametrize("composer", ["switch", "composite", "ties"])
def test_prompts_with_other_adapters_are_generated_as_if_alone(composer: str, sd_pipe: StableDiffusionPipeline) -> None:
    pipeline, active_adapters = Pipeline(sd_pipe), _two(sd_pipe)
    prompts, lists = (
        [PROMPT, "a xlo dog", PROMPT, "a house"],
        [active_adapters, active_adapters[:1], active_adapters[::-1], []],
    )
    together = pipeline(prompts, lists, steps=STEPS, composer=composer)
    for image, prompt, own in zip(together, prompts, lists, strict=True):
        (alone,) = pipeline(prompt, own, steps=STEPS, composer=composer)
        assert np.abs(np.asarray(image, dtype=int) - np.asarray(alone, dtype=int)).max() <= 1


def test_a_composer_of_ones_own_needs_no_name(sd_pipe: StableDiffusionPipeline) -> None:
    active_adapters = _two(sd_pipe)
    own = Composer(description="the last adapter on its own word", masked=True, adapters=lambda adapters: adapters[-1:])
    assert torch.equal(_generated(sd_pipe, active_adapters, own), _generated(sd_pipe, active_adapters[-1:], "tara"))


def test_what_a_plain_call_cannot_do_is_refused_with_the_way_to_do_it(sd_pipe: StableDiffusionPipeline) -> None:
    active_adapters = _two(sd_pipe, CROSS_KV)
    assert tara.prepare(sd_pipe, PROMPT, active_adapters, composer="ties")["prompt_embeds"].shape[0] == 1
    for composer in ("switch", "composite"):
        with pytest.raises(TaraError, match=r"one adapter after the other. Use `with tara\.prepared"):
            tara.prepare(sd_pipe, PROMPT, active_adapters, composer=composer)
    with pytest.raises(TaraError, match="Did you mean 'switch'"):
        tara.prepare(sd_pipe, PROMPT, active_adapters, composer="swich")


def test_every_composer_is_explained_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "generate.md").read_text(encoding="utf-8")
    assert [name for name in COMPOSERS if f"| `{name}` |" not in page] == []
