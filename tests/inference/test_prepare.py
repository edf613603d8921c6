"""Prepared pipelines: a stock pipeline with adapters, and everything as it was after release."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
)
from numpy.typing import NDArray
from PIL import Image

import tara
import tiny_adapters
import tiny_bases
from tara.adapters.adapter import Adapter
from tara.errors import TaraError
from tara.families.base import Base
from tara.families.processors import TextKVProcessor
from tara.inference.active_adapter import ActiveAdapter

PROMPT = "a xlo dog on the beach"


def _rex(pipe: Any, **options: Any) -> Adapter:
    return tiny_adapters.random_adapter(Base(pipe), **options)


def _run(pipe: Any, seeds: int = 1, **arguments: Any) -> NDArray[np.float32]:
    generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    generator = generators if seeds > 1 else generators[0]
    pipe.set_progress_bar_config(disable=True)
    return pipe(**arguments, num_inference_steps=2, generator=generator, output_type="np").images


def _image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _image_to_image(pipe: Any) -> tuple[Any, dict[str, Any]]:
    return AutoPipelineForImage2Image.from_pipe(pipe), {"image": _image(), "strength": 1.0}


def _inpainting(pipe: Any) -> tuple[Any, dict[str, Any]]:
    mask = Image.new("L", (32, 32), 255)
    return AutoPipelineForInpainting.from_pipe(pipe), {
        "image": _image(), "mask_image": mask, "strength": 1.0, "width": 32, "height": 32,
    }  # fmt: skip


def _controlnet(pipe: Any) -> tuple[Any, dict[str, Any]]:
    parts = {**pipe.components, "controlnet": tiny_bases.controlnet(), "image_encoder": None}
    return StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False), {"image": _image()}


def _text_to_image(pipe: Any) -> tuple[Any, dict[str, Any]]:
    return pipe, {}


TASKS = [
    ("sd", _text_to_image),
    ("sd", _image_to_image),
    ("sd", _inpainting),
    ("sd", _controlnet),
    ("sdxl", _text_to_image),
    ("sdxl", _image_to_image),
    ("sdxl", _inpainting),
]


@pytest.mark.parametrize(("shape", "task"), TASKS)
def test_stock_pipelines_generate_what_was_prepared_and_without_adapters_their_own_image(shape: str, task: Any) -> None:
    pipe, extra = task(tiny_bases.sd_pipeline() if shape == "sd" else tiny_bases.sdxl_pipeline())
    stock = _run(pipe, prompt=PROMPT, **extra)
    assert np.array_equal(_run(pipe, **tara.prepare(pipe, PROMPT), **extra), stock)
    fresh = _run(pipe, **tara.prepare(pipe, PROMPT, [_rex(pipe, strength=0.0)]), **extra)
    assert np.array_equal(fresh, stock)
    composed = _run(pipe, **tara.prepare(pipe, PROMPT, [_rex(pipe)]), **extra)
    assert np.abs(composed - stock).max() > 1e-3
    assert np.array_equal(_run(pipe, prompt=PROMPT, **extra), stock)  # the processors are still on
    tara.release(pipe)
    assert not any(isinstance(processor, TextKVProcessor) for processor in pipe.unet.attn_processors.values())


@pytest.mark.parametrize("guidance_scale", [1.0, 0.0, 4.0, None])
@pytest.mark.parametrize("negative", [None, "a red house"])
def test_the_rows_follow_guidance_as_in_the_stock_pipeline(
    any_pipe: Any, guidance_scale: float | None, negative: str | None
) -> None:
    given = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
    stock = _run(any_pipe, prompt=PROMPT, negative_prompt=negative, **given)
    prepared = tara.prepare(any_pipe, PROMPT, negative_prompt=negative, **given)
    assert np.array_equal(_run(any_pipe, **prepared), stock)
    guided = guidance_scale is None or guidance_scale > 1
    assert prepared["cross_attention_kwargs"]["tara"].rows == (2 if guided else 1)
    assert ("negative_prompt_embeds" in prepared) == guided


def test_several_prompts_and_images_per_prompt_keep_the_stock_order(any_pipe: Any) -> None:
    prompts = [PROMPT, "a cat"]
    prepared = tara.prepare(any_pipe, prompts, [[_rex(any_pipe, strength=0.0)], []], num_images_per_prompt=2)
    stock = _run(any_pipe, seeds=4, prompt=prompts, num_images_per_prompt=2)
    assert np.abs(_run(any_pipe, seeds=4, **prepared) - stock).max() < 1 / 255


def test_a_row_without_adapters_equals_the_bases_row(any_pipe: Any) -> None:
    prompts = [PROMPT, "a cat", "a red house"]
    base = _run(any_pipe, seeds=3, **tara.prepare(any_pipe, prompts))
    mixed = _run(any_pipe, seeds=3, **tara.prepare(any_pipe, prompts, [[_rex(any_pipe)], [], []]))
    assert np.array_equal(mixed[1:], base[1:])
    assert np.abs(mixed[0] - base[0]).max() > 1e-3


def test_unconditional_and_negative_rows_are_closed_even_to_the_rare_word(any_pipe: Any) -> None:
    def kv(adapters: list[Adapter]) -> Any:
        prepared = tara.prepare(any_pipe, PROMPT, adapters, negative_prompt="a xlo dog", num_images_per_prompt=2)
        return prepared["cross_attention_kwargs"]["tara"].kv

    base, composed = kv([]), kv([_rex(any_pipe)])
    for layer, (keys, values) in composed.items():
        for ours, theirs in ((keys, base[layer][0]), (values, base[layer][1])):
            assert torch.equal(ours[:2], theirs[:2])
            assert not torch.equal(ours[2:], theirs[2:])


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")  # it is what we want
@torch.no_grad()
def test_summed_adapters_are_diffusers_own_lora(any_pipe: Any, tmp_path: Any) -> None:
    adapters = [
        tiny_adapters.random_adapter(
            Base(any_pipe), word, kind, seed=seed, targets=tiny_adapters.ATTENTION, strength=0.1
        )
        for seed, (word, kind) in enumerate([("xlo", "dog"), ("szn", "cat")])
    ]
    prompt = "a xlo dog and a szn cat"
    with tara.prepared(any_pipe, prompt, adapters, composer="sum") as arguments:
        ours = _run(any_pipe, **arguments)
    for number, adapter in enumerate(adapters):
        any_pipe.load_lora_weights(adapter.save(tmp_path / f"{number}.safetensors"), adapter_name=f"adapter{number}")
    any_pipe.set_adapters(["adapter0", "adapter1"])
    theirs = _run(any_pipe, prompt=prompt)
    any_pipe.unload_lora_weights()
    assert np.abs(theirs - _run(any_pipe, prompt=prompt)).max() > 0.01
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_text_goes_through_the_unets_current_projections(sd_pipe: StableDiffusionPipeline, tmp_path: Any) -> None:
    other = _rex(sd_pipe, seed=7).save(tmp_path / "other.safetensors")
    sd_pipe.load_lora_weights(other)
    stock = _run(sd_pipe, prompt=PROMPT)
    assert np.array_equal(_run(sd_pipe, **tara.prepare(sd_pipe, PROMPT)), stock)


@pytest.mark.parametrize("fails", [False, True])
def test_a_global_part_is_there_for_the_block_only(any_pipe: Any, fails: bool) -> None:
    adapter = _rex(any_pipe, targets=tiny_adapters.ATTENTION)
    weights = {name: weight.clone() for name, weight in any_pipe.unet.state_dict().items()}
    processors = any_pipe.unet.attn_processors
    stock = _run(any_pipe, prompt=PROMPT)
    with pytest.raises(TaraError, match=r"Use `with tara\.prepared"):
        tara.prepare(any_pipe, PROMPT, [adapter])
    try:
        with tara.prepared(any_pipe, PROMPT, [adapter]) as arguments:
            inside = _run(any_pipe, **arguments)
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert np.abs(inside - stock).max() > 1e-3
    after = any_pipe.unet.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())
    assert all(any_pipe.unet.attn_processors[name] is processor for name, processor in processors.items())
    assert np.array_equal(_run(any_pipe, prompt=PROMPT), stock)
    without = _run(any_pipe, **tara.prepare(any_pipe, PROMPT, [ActiveAdapter(adapter, global_weight=0.0)]))
    assert np.abs(without - inside).max() > 1e-3


def test_the_number_of_adapters_does_not_change_what_a_step_runs(sd_pipe: StableDiffusionPipeline) -> None:
    words = [("xlo", "dog"), ("szn", "cat"), ("rex", "toy"), ("tom", "robot")]
    adapters = [_rex(sd_pipe, rare_word=word, class_word=kind) for word, kind in words]
    prompt = " and ".join(f"a {word} {kind}" for word, kind in words)
    operations: list[list[str]] = []
    for used in ([], adapters):
        arguments = tara.prepare(sd_pipe, prompt, used)
        text = torch.cat([arguments["negative_prompt_embeds"], arguments["prompt_embeds"]])
        with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            sd_pipe.unet(
                torch.zeros(2, 4, 16, 16), 10, text, cross_attention_kwargs=arguments["cross_attention_kwargs"]
            )
        operations.append(sorted(f"{event.key} {event.count}" for event in profile.key_averages()))
    assert operations[0] == operations[1]


def test_a_call_with_other_rows_than_prepared_is_refused(sd_pipe: StableDiffusionPipeline) -> None:
    prepared = tara.prepare(sd_pipe, PROMPT, [_rex(sd_pipe)])
    with pytest.raises(TaraError, match="same prompts, guidance_scale and num_images_per_prompt"):
        _run(sd_pipe, **(prepared | {"num_images_per_prompt": 2}))
    with pytest.raises(TaraError, match="same prompts, guidance_scale and num_images_per_prompt"):
        _run(sd_pipe, **(prepared | {"guidance_scale": 1.0}))


def test_slicing_after_preparing_is_refused(sd_pipe: StableDiffusionPipeline) -> None:
    prepared = tara.prepare(sd_pipe, PROMPT, [_rex(sd_pipe)])
    sd_pipe.enable_attention_slicing(1)
    with pytest.raises(TaraError, match="SlicedAttnProcessor"):
        _run(sd_pipe, **prepared)


def test_release_works_whatever_the_pipeline_has_become(sd_pipe: StableDiffusionPipeline) -> None:
    before = sd_pipe.unet.attn_processors
    tara.prepare(sd_pipe, PROMPT, [_rex(sd_pipe)])
    sd_pipe.unet.encoder_hid_proj = torch.nn.Linear(32, 32)  # as an IP-Adapter that was loaded meanwhile
    tara.release(sd_pipe)
    assert all(sd_pipe.unet.attn_processors[name] is processor for name, processor in before.items())


def test_a_refused_preparation_leaves_the_pipeline_alone(sd_pipe: StableDiffusionPipeline) -> None:
    before = sd_pipe.unet.attn_processors
    with pytest.raises(TaraError, match="is not in the prompt"):
        tara.prepare(sd_pipe, "a dog", [_rex(sd_pipe)])
    assert sd_pipe.unet.attn_processors == before


def test_wrong_arguments_are_one_clear_sentence(sd_pipe: StableDiffusionPipeline) -> None:
    rex: Any = _rex(sd_pipe)
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (PROMPT, [rex], {"guidence_scale": 3}, "Did you mean 'guidance_scale'"),
        (PROMPT, [rex], {"context": "book"}, "context = 'book' is refused"),
        (PROMPT, [rex], {"composer": "product"}, "composer is 'product'"),
        (PROMPT, [rex], {"num_images_per_prompt": 0}, "Give 1 or more"),
        (PROMPT, rex, {}, "adapters is one adapter"),
        (PROMPT, Path("rex.safetensors"), {}, "adapters is one adapter"),
        ([PROMPT, PROMPT], [[rex]], {}, "adapters has 1 entries"),
        ([PROMPT, PROMPT], [[rex], rex], {}, "adapters has 2 entries"),
        ([PROMPT, PROMPT], [rex], {"negative_prompt": ["a"]}, "2 prompts but 1 negative"),
        ([], [], {}, "There is no prompt"),
    ]
    for prompt, adapters, options, message in cases:
        with pytest.raises(TaraError, match=message):
            tara.prepare(sd_pipe, prompt, adapters, **options)


def test_prompts_of_any_length_fit_and_share_a_call_with_shorter_ones(sd_pipe: StableDiffusionPipeline) -> None:
    long = "big " * 100 + "xlo dog"
    kwargs = tara.prepare(sd_pipe, [PROMPT, long], [[], [_rex(sd_pipe)]], negative_prompt="ugly")
    assert kwargs["prompt_embeds"].shape == kwargs["negative_prompt_embeds"].shape == (2, 2 * 77, 32)
    pixels = _run(sd_pipe, **tara.prepare(sd_pipe, long, [_rex(sd_pipe)]))
    assert not np.array_equal(pixels, _run(sd_pipe, **tara.prepare(sd_pipe, long)))  # xlo is in the second chunk


def test_prompts_that_name_one_file_share_its_global_part(sd_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    file = str(_rex(sd_pipe, targets=tiny_adapters.ATTENTION).save(tmp_path / "rex.safetensors"))
    with tara.prepared(sd_pipe, [PROMPT, PROMPT], [[file], [file]]) as kwargs:
        assert kwargs["prompt_embeds"].shape[0] == 2
    with (
        pytest.raises(TaraError, match="Generate the prompts one by one"),
        tara.prepared(sd_pipe, [PROMPT, PROMPT], [[file], [f"{file}:0.5"]]),
    ):
        pass


def test_clip_skip_reaches_the_prompt_and_not_the_negative_text(any_pipe: Any) -> None:
    plain, skipped = (tara.prepare(any_pipe, PROMPT, clip_skip=skip) for skip in (None, 1))
    assert not torch.equal(plain["prompt_embeds"], skipped["prompt_embeds"])
    assert torch.equal(plain["negative_prompt_embeds"], skipped["negative_prompt_embeds"])


def test_what_belongs_to_the_pipeline_call_is_not_ignored_in_silence(sd_pipe: Any) -> None:
    with pytest.raises(TaraError, match=r"not 'num_inference_steps'.*pipe\(\*\*tara\.prepare"):
        tara.prepare(sd_pipe, "a dog", num_inference_steps=30)
