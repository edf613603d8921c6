"""The pipeline call: its images are those of the stock pipeline, whatever the batch, and its arguments are checked."""

import functools
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import tara
import tiny_adapters
import tiny_bases
import toyland
from tara.adapters.adapter import Adapter
from tara.cli.terminal import one_line
from tara.errors import TaraError
from tara.families.base import Base
from tara.families.processors import TextKVProcessor
from tara.inference.pipeline import DenoisingStep, Pipeline
from tara.inference.settings import SCHEDULERS

PROMPT = "a xlo dog on the beach"


def _rex(pipe: Any, **options: Any) -> Adapter:
    return tiny_adapters.random_adapter(Base(pipe), **options)


def _pixels(images: list[Image.Image]) -> NDArray[np.int64]:
    return np.stack([np.asarray(image, dtype=np.int64) for image in images])


def test_the_same_call_gives_the_same_images_to_the_last_bit(any_pipe: Any) -> None:
    pipeline, rex = Pipeline(any_pipe), _rex(any_pipe)
    one, other = (_pixels(pipeline(PROMPT, [rex], seeds=range(3), steps=2)) for _ in range(2))
    assert np.array_equal(one, other)
    assert len({image.tobytes() for image in one}) == 3


def test_an_image_does_not_depend_on_the_batch_it_was_generated_in(any_pipe: Any) -> None:
    pipeline, rex = Pipeline(any_pipe), _rex(any_pipe)
    together = _pixels(pipeline([PROMPT, "a cat"], [[rex], []], seeds=range(3), steps=2, batch_size=4))
    alone = _pixels(pipeline([PROMPT, "a cat"], [[rex], []], seeds=range(3), steps=2, batch_size=1))
    assert np.abs(together - alone).max() <= 1


def test_prompts_of_different_lengths_and_weights_are_generated_as_if_alone(any_pipe: Any) -> None:
    pipeline, rex = Pipeline(any_pipe), _rex(any_pipe)
    prompts = [PROMPT, "big " * 90 + "xlo dog", "a (xlo:1.5) dog", "a xlo dog BREAK a beach"]
    together = _pixels(pipeline(prompts, [rex], steps=2, negative_prompt="big " * 80))
    alone = [_pixels(pipeline(prompt, [rex], steps=2, negative_prompt="big " * 80))[0] for prompt in prompts]
    assert np.abs(together - np.stack(alone)).max() <= 1
    plain = _pixels(pipeline(["a xlo dog", "a xlo dog a beach"], [rex], steps=2, negative_prompt="big " * 80))
    assert (plain != together[2:]).any((1, 2, 3)).all()


def test_a_controlnet_pipeline_is_refused_with_the_way_to_use_it(sd_pipe: StableDiffusionPipeline) -> None:
    pipe = StableDiffusionControlNetPipeline(**sd_pipe.components, controlnet=tiny_bases.controlnet())
    with pytest.raises(TaraError, match=r"needs a control image.*tara\.prepared\(pipe"):
        Pipeline(pipe)


def test_the_embedded_base_is_generated_with_the_guidance_that_suits_it() -> None:
    pipeline = Pipeline(toyland.BASE, device="cpu")
    own, same, stock = (
        _pixels(pipeline("a cat in the snow", steps=2, **given))
        for given in ({}, {"guidance_scale": toyland.GUIDANCE_SCALE}, {"guidance_scale": 7.5})
    )
    assert np.array_equal(own, same)
    assert not np.array_equal(own, stock)


def test_without_adapters_it_is_the_stock_pipelines_image(any_pipe: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    stock = any_pipe(PROMPT, num_inference_steps=2, generator=generator, guidance_scale=3.0).images
    assert np.array_equal(_pixels(Pipeline(any_pipe)(PROMPT, seeds=[5], steps=2, guidance_scale=3.0)), _pixels(stock))


def test_records_say_what_made_each_image_and_steps_count_up(sd_pipe: StableDiffusionPipeline) -> None:
    steps: list[DenoisingStep] = []
    rex = _rex(sd_pipe)
    prompts = [PROMPT, "a cat"]
    generated = list(
        Pipeline(sd_pipe).stream(prompts, [[rex], []], seeds=[7, 8], steps=2, batch_size=3, on_step=steps.append)
    )
    assert [(one.index, one.request.prompt, one.seed) for one in generated] == [
        (0, PROMPT, 7),
        (1, PROMPT, 8),
        (2, "a cat", 7),
        (3, "a cat", 8),
    ]
    names = [[active.name for active in one.request.adapters] for one in generated]
    assert names == [["xlo-dog.safetensors"]] * 2 + [[]] * 2
    assert {one.request.settings.steps for one in generated} == {2}
    assert [step.fraction for step in steps] == [0.375, 0.75, 0.875, 1.0]


def test_batches_are_split_where_global_parts_differ_and_nowhere_else(sd_pipe: StableDiffusionPipeline) -> None:
    rex, tom = _rex(sd_pipe, targets=tiny_adapters.ATTENTION), _rex(sd_pipe, rare_word="szn", class_word="cat")
    prompts = ["a xlo dog", "a szn cat", "a red house"]
    adapters = [[rex], [tom], []]
    steps: list[DenoisingStep] = []
    pipeline = Pipeline(sd_pipe)
    weights = {name: weight.clone() for name, weight in sd_pipe.unet.state_dict().items()}
    together = _pixels(pipeline(prompts, adapters, seeds=[0], steps=1, on_step=steps.append))
    assert [step.batch for step in steps] == [1, 2]
    alone = [pipeline(prompt, used, seeds=[0], steps=1)[0] for prompt, used in zip(prompts, adapters, strict=True)]
    assert np.abs(together - _pixels(alone)).max() <= 1
    assert all(torch.equal(weight, weights[name]) for name, weight in sd_pipe.unet.state_dict().items())


@pytest.mark.parametrize("stopped", [False, True])
def test_the_pipeline_is_left_as_it_was_found(sd_pipe: StableDiffusionPipeline, stopped: bool) -> None:
    before = sd_pipe.unet.attn_processors
    weights = {name: weight.clone() for name, weight in sd_pipe.unet.state_dict().items()}
    scheduler = sd_pipe.scheduler

    def stop(step: DenoisingStep) -> None:
        if stopped:
            raise KeyboardInterrupt

    rex = _rex(sd_pipe, targets=tiny_adapters.ATTENTION)
    try:
        Pipeline(sd_pipe)(PROMPT, [rex], steps=2, scheduler="euler", on_step=stop)
    except KeyboardInterrupt:
        assert stopped
    assert all(sd_pipe.unet.attn_processors[name] is processor for name, processor in before.items())
    assert not any(isinstance(processor, TextKVProcessor) for processor in before.values())
    assert all(torch.equal(weight, weights[name]) for name, weight in sd_pipe.unet.state_dict().items())
    assert sd_pipe.scheduler is scheduler


def test_images_start_from_an_image_or_repaint_a_part_of_it(any_pipe: Any, tmp_path: Path) -> None:
    pipeline, rex = Pipeline(any_pipe), _rex(any_pipe)
    start = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    start.save(tmp_path / "start.png")
    little, much = (
        _pixels(pipeline(PROMPT, [rex], steps=4, image=tmp_path / "start.png", strength=strength))
        for strength in (0.25, 1.0)
    )
    assert little.shape == (1, 32, 40, 3)  # its own shape, 32 pixels on the short side
    assert not np.array_equal(little, much)
    mask = Image.new("L", (64, 48), 0)
    mask.paste(255, (0, 0, 32, 48))
    whole = Image.new("L", (64, 48), 255)
    left, everything = (
        _pixels(pipeline(PROMPT, [rex], steps=2, image=start, mask=each, strength=1.0, width=64, height=48))
        for each in (mask, whole)
    )
    assert left.shape == (1, 48, 64, 3)
    assert not np.array_equal(left, everything)


def test_a_base_that_cannot_inpaint_says_so() -> None:
    start = Image.new("RGB", (64, 64))
    with pytest.raises(TaraError, match="cannot inpaint"):
        Pipeline(toyland.BASE, device="cpu")("a cat", image=start, mask=Image.new("L", (64, 64), 255))


@pytest.mark.parametrize("scheduler", ["heun", "pndm"])
def test_a_scheduler_that_would_leave_out_a_part_of_the_noise_schedule_is_refused(sd_pipe: Any, scheduler: str) -> None:
    sd_pipe.scheduler = DDIMScheduler.from_config(sd_pipe.scheduler.config, rescale_betas_zero_snr=True)
    with pytest.raises(TaraError, match=f"'{scheduler}' cannot start from pure noise"):
        Pipeline(sd_pipe)("a dog", scheduler=scheduler, steps=2)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_generates(sd_pipe: StableDiffusionPipeline, scheduler: str) -> None:
    steps: list[DenoisingStep] = []
    one, other = (
        _pixels(Pipeline(sd_pipe)("a cat", seeds=[1], steps=3, scheduler=scheduler, on_step=steps.append))
        for _ in range(2)
    )
    assert np.array_equal(one, other)
    assert one.std() > 0
    assert steps[-1].fraction == 1.0


def test_size_is_the_bases_own_or_the_users(sd_pipe: StableDiffusionPipeline) -> None:
    pipeline = Pipeline(sd_pipe)
    assert pipeline("a cat", steps=1)[0].size == (32, 32)
    assert pipeline("a cat", steps=1, width=48, height=24)[0].size == (48, 24)


def test_impossible_settings_are_one_clear_sentence(sd_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    pipeline = Pipeline(sd_pipe)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    Image.new("RGB", (32, 32)).save(tmp_path / "half.png")
    whole = (tmp_path / "half.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[:20] + b"zzzz" + whole[24:])  # its header does not add up
    blank = Image.new("RGB", (32, 32))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"guidence_scale": 3}, "Did you mean 'guidance_scale'"),
        ({"steps": 0}, "steps = 0 is refused: .* greater than or equal to 1"),
        ({"steps": 2.5}, "steps = 2.5 is refused: .* valid integer"),
        ({"steps": 2000}, "steps = 2000 is refused"),
        ({"width": 33}, "width = 33 is refused: .* multiple of 8"),
        ({"scheduler": "eulr"}, "Did you mean 'euler'"),
        ({"mask": blank}, "mask needs an image to start from"),
        ({"image": blank, "strength": 0.0}, "strength = 0.0 is refused"),
        ({"image": blank, "strength": 0.1, "steps": 3}, "changes nothing"),
        ({"image": tmp_path / "none.png"}, "There is no image"),
        ({"image": tmp_path / "broken.png"}, "is not a complete image"),
        ({"image": tmp_path / "half.png"}, "is not a complete image"),
    ]
    for settings, message in cases:
        with pytest.raises(TaraError, match=message):
            pipeline("a cat", **settings)


def test_the_package_offers_its_names_without_importing_torch() -> None:
    code = "import sys, tara; assert 'torch' not in sys.modules; print(tara.__version__); tara.TaraError; tara.nothing"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == tara.__version__
    assert "module 'tara' has no attribute 'nothing'" in result.stderr


ANY_SCRIPT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
TRICKY = st.sampled_from(
    [
        "🐕",
        "👩\u200d🎨",
        "🏳️\u200d🌈",
        "כלב",
        "\u202exlo\u202c",
        "x\u200blo",
        "\ufeffxlo",
        "कुत्ता",
        "犬",
        "собака",
        "İ",
        "ß",
    ]
)


one_pipe = functools.cache(tiny_bases.sd_pipeline)  # hypothesis does not take a fixture of function scope


@pytest.mark.filterwarnings("ignore:The prompt is longer")  # letters of rare scripts are many tokens each
@trials(max_examples=25, deadline=None)
@given(TRICKY | ANY_SCRIPT, ANY_SCRIPT)
def test_words_and_prompts_of_any_script_are_generated_or_refused_in_a_sentence(word: str, others: str) -> None:
    pipeline = Pipeline(one_pipe())
    try:
        rex = _rex(one_pipe(), rare_word=word)
        (image,) = pipeline(f"a {word} dog {others}", [rex], seeds=[0], steps=1)
    except TaraError as failure:
        image, refusal = None, str(failure)
    else:
        refusal = "none"
    assert len(one_line(refusal).splitlines()) == 1
    if image is not None:
        (without,) = pipeline(f"a {word} dog {others}", [], seeds=[0], steps=1)
        assert not np.array_equal(_pixels([image]), _pixels([without]))  # the word was found


def test_one_seed_may_be_a_number_and_steps_may_have_diffusers_name(sd_pipe: StableDiffusionPipeline) -> None:
    pipeline = Pipeline(sd_pipe)
    wanted = _pixels(pipeline("a dog", seeds=[3], steps=2))
    assert np.array_equal(_pixels(pipeline("a dog", seeds=3, num_inference_steps=2)), wanted)
    with pytest.raises(TaraError, match="steps and num_inference_steps are the same"):
        pipeline("a dog", steps=2, num_inference_steps=2)


def test_signatures_show_the_settings() -> None:
    shown = inspect.signature(Pipeline.__call__).parameters
    assert shown["steps"].default == 30
    assert "kwargs" not in str(shown)
    assert {"rank", "learning_rate", "masks"} <= inspect.signature(tara.train).parameters.keys()
    assert {"Pipeline", "prepare", "release", "train"} <= set(dir(tara))


def test_an_impossible_seed_is_one_sentence(sd_pipe: StableDiffusionPipeline) -> None:
    with pytest.raises(TaraError, match=r"seeds\.0 = -1 is refused"):
        Pipeline(sd_pipe)("a cat", seeds=-1)
