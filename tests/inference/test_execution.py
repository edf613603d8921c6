"""A base compiled, in slices or offloaded generates the same images; what a machine cannot do is one sentence."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline

import tara
import tiny_bases
from tara.cli import main
from tara.errors import TaraError
from tara.families.base import Base
from tara.inference.pipeline import Pipeline
from tara.inference.settings import GenerationSettings
from tara.inference.stock_pipeline import make_scheduler, scheduler_for
from tiny_adapters import ATTENTION, random_adapter

PROMPT = "a xlo dog on the beach"


def generated(pipeline: Pipeline, adapters: Sequence[Any], **settings: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Pixels of two images."""
    return np.stack(
        [np.asarray(one, dtype=np.int64) for one in pipeline(PROMPT, adapters, (0, 1), steps=2, **settings)]
    )


def compiled_by(pipe: Any, monkeypatch: pytest.MonkeyPatch, backend: Callable[..., Any]) -> None:
    """Let ``unet.compile()`` use a backend that needs no compiler."""
    monkeypatch.setattr(pipe.unet, "compile", partial(type(pipe.unet).compile, pipe.unet, backend=backend))


@pytest.mark.parametrize("build", [tiny_bases.sd_pipeline, tiny_bases.sdxl_pipeline])
def test_a_compiled_base_generates_the_same_with_any_adapters_and_compiles_once(
    build: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
):
    any_pipe = build()
    base, graphs = Base(any_pipe), []
    adapters = [random_adapter(base, seed=seed) for seed in (0, 1)]
    before = [generated(Pipeline(any_pipe), [adapter]) for adapter in adapters]

    def counting(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled_by(any_pipe, monkeypatch, counting)
    pipeline = Pipeline(any_pipe, compile=True)
    assert all(
        np.array_equal(generated(pipeline, [adapter]), image) for adapter, image in zip(adapters, before, strict=True)
    )
    assert len(graphs) == 1


def test_a_compiler_that_fails_is_one_sentence(sd_pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch):
    def failing(_graph: Any, _inputs: Any) -> Any:
        raise RuntimeError("no compiler found")

    compiled_by(sd_pipe, monkeypatch, failing)
    with pytest.raises(TaraError, match=r"cannot be compiled here .*Leave compile out"):
        generated(Pipeline(sd_pipe, compile=True), [])


def test_attention_in_slices_generates_the_same_images(any_pipe: Any):
    adapter = random_adapter(Base(any_pipe), targets=ATTENTION)
    whole = generated(Pipeline(any_pipe), [adapter])
    sliced = generated(Pipeline(any_pipe, attention_slicing=True), [adapter])
    assert np.abs(whole - sliced).max() <= 1


def test_slicing_between_prepare_and_release_is_refused(sd_pipe: StableDiffusionPipeline):
    tara.prepare(sd_pipe, PROMPT, [random_adapter(Base(sd_pipe))])
    with pytest.raises(TaraError, match=r"Call tara\.release first"):
        Pipeline(sd_pipe, attention_slicing=True)


def test_a_cpu_has_nothing_to_offload(base: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["generate", "a cat", "--base", str(base), "--offload", "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert "Leave offload out" in capsys.readouterr().err


def test_an_unknown_way_to_run_is_named_with_the_nearest_one(sd_pipe: StableDiffusionPipeline):
    with pytest.raises(TaraError, match="Did you mean 'offload'"):
        Pipeline(sd_pipe, ofload=True)


@pytest.mark.gpu
def test_an_offloaded_base_generates_the_same_images(base: Path):
    whole, parted = (Pipeline(base, device="cuda", precision="fp32", offload=offload) for offload in (False, True))
    adapter = random_adapter(whole.base, targets=ATTENTION)
    assert np.abs(generated(whole, [adapter]) - generated(parted, [adapter])).max() <= 1


def test_latents_are_never_clipped_as_pixels_are():
    silent = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear"}
    assert [make_scheduler(name, silent, 4).config.clip_sample for name in ("ddim", "ddpm", "lcm")] == [False] * 3


def test_a_few_step_sampler_refuses_many_steps(sd_pipe: StableDiffusionPipeline):
    with pytest.raises(TaraError, match="'lcm' takes at most 50"):
        Pipeline(sd_pipe)(PROMPT, steps=60, scheduler="lcm")


@pytest.mark.parametrize("scheduler", [None, "ddim"])
def test_as_many_steps_as_the_schedule_has_are_refused_where_an_offset_moves_them_beyond_it(
    sd_pipe: StableDiffusionPipeline, scheduler: str | None
):
    base = Base(sd_pipe)
    assert base.scheduler.config.steps_offset == 1
    with pytest.raises(TaraError, match="begins at timestep 1000; the noisiest that the base has is 999"):
        Pipeline(base)("a cat", steps=1000, scheduler=scheduler)
    assert len(scheduler_for(base, GenerationSettings(steps=999, scheduler=scheduler)).timesteps) == 999
