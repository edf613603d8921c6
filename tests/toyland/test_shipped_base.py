"""The shipped weights: their size, and that base, autoencoder and judge do what they are shipped for.

A smaller sample than `benchmarks/base_toyland.py` measures, against the same floors.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

import toyland
from toyland.autoencoder import psnr, reconstruct, to_pixels
from toyland.captions import bare_caption
from toyland.judge import Finding, Judge, Verdict
from toyland.render import render
from toyland.subjects import SAME_SUBJECT, likeness
from toyland.world import BACKGROUNDS, CLASSES, Thing, place, random_scene, random_subject

SEED = 31


@pytest.fixture(scope="module")
def judge(shipped: Path) -> Judge:
    return Judge.load(toyland.JUDGE)


@pytest.fixture(scope="module")
def vae(shipped: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(shipped / "vae", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def pipe(shipped: Path) -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(shipped, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _of(verdict: Verdict, thing: Thing) -> Finding | None:
    near = [f for f in verdict.things if max(abs(f.x - thing.x), abs(f.y - thing.y)) < 0.1]
    return near[0] if near else None


def test_the_weights_are_small_half_precision_files(shipped: Path) -> None:
    files = [*shipped.rglob("*.safetensors"), toyland.JUDGE]
    assert max(path.stat().st_size for path in files) < 15e6
    assert sum(path.stat().st_size for path in files) <= 40e6
    assert not list(shipped.rglob("*.bin"))


def test_the_judge_names_class_and_appearance_of_held_out_scenes(judge: Judge) -> None:
    rng = np.random.default_rng(SEED)
    scenes = [random_scene(rng, style="none") for _ in range(100)]
    named = colored = patterned = total = 0
    for scene, verdict in zip(scenes, judge([render(scene) for scene in scenes]), strict=True):
        for thing in scene.things:
            total += 1
            if finding := _of(verdict, thing):
                named += finding.kind == thing.kind
                colored += finding.look.color_names()[:2] == thing.look.color_names()[:2]
                patterned += (finding.look.pattern, finding.look.accessory) == (
                    thing.look.pattern,
                    thing.look.accessory,
                )
    assert named >= 0.98 * total
    assert colored >= 0.9 * total  # two colours at a time
    assert patterned >= 0.93 * total


def test_the_autoencoder_is_sharp_on_held_out_scenes(vae: AutoencoderKL) -> None:
    rng = np.random.default_rng(SEED + 1)
    pixels = to_pixels(np.stack([np.asarray(render(random_scene(rng))) for _ in range(48)]))
    assert psnr(reconstruct(vae, pixels), pixels) >= 30


def test_re_renders_pass_for_their_subject_and_others_of_the_class_do_not(judge: Judge) -> None:
    rng = np.random.default_rng(SEED + 2)
    subjects = [random_subject(rng) for _ in range(150)]
    others = [random_subject(rng, subject.kind) for subject in subjects]
    passing: list[float] = []
    for shown in (subjects, others):
        scenes = [place(rng, [subject], background=str(rng.choice(BACKGROUNDS))) for subject in shown]
        verdicts = judge([render(scene) for scene in scenes])
        found = [_of(verdict, scene.things[0]) for verdict, scene in zip(verdicts, scenes, strict=True)]
        likes = [0.0 if f is None else likeness(f, subject) for f, subject in zip(found, subjects, strict=True)]
        passing.append(float(np.mean([like >= SAME_SUBJECT for like in likes])))
    assert passing[0] >= 0.95
    assert passing[1] <= 0.05


def test_the_base_draws_what_a_bare_prompt_names(pipe: Any, judge: Judge) -> None:
    grounds = [BACKGROUNDS[index % len(BACKGROUNDS)] for index in range(len(CLASSES))]
    prompts = [bare_caption([kind], ground) for kind, ground in zip(CLASSES, grounds, strict=True)]
    generators = [torch.Generator().manual_seed(index) for index in range(len(prompts))]
    verdicts = judge(
        pipe(prompts, num_inference_steps=20, guidance_scale=toyland.GUIDANCE_SCALE, generator=generators).images
    )
    kinds = [kind in {f.kind for f in verdict.things} for kind, verdict in zip(CLASSES, verdicts, strict=True)]
    assert sum(kinds) >= len(CLASSES) - 1
    assert (
        sum(verdict.background == ground for verdict, ground in zip(verdicts, grounds, strict=True)) >= len(CLASSES) - 1
    )
