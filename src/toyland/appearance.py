"""How often the base generates things as they were described in full: what the judge finds, attribute by attribute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from toyland.captions import full_caption
from toyland.judge import Finding, Judge, Verdict
from toyland.unet import draw_latents
from toyland.world import BACKGROUNDS, Appearance, Scene, Thing, place, random_subject

ATTRIBUTES = ("body", "second", "third", "pattern", "accessory")
SEED = 977
"""Of the subjects and prompts of the curve; `benchmarks/base_toyland.py` has others."""
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class AppearanceCounts:
    """How many prompts describe one, two and three things in full, and after how many steps they are measured again."""

    one: int = 160
    two: int = 60
    three: int = 60
    every: int = 2500


def described_scenes(seed: int, things: int, count: int) -> list[Scene]:
    """Scenes of random subjects with accessories, to be described in full."""
    rng = np.random.default_rng([seed, things])
    return [
        place(rng, [random_subject(rng) for _ in range(things)], background=str(rng.choice(BACKGROUNDS)))
        for _ in range(count)
    ]


def right_attributes(finding: Finding | None, look: Appearance) -> dict[str, bool]:
    """Which of the attributes of an appearance the judge names rightly; an absent accessory has no colour."""
    wanted = dict(zip(ATTRIBUTES, (*look.color_names(), look.pattern, look.accessory), strict=True))
    if look.accessory == "none":
        wanted.pop("third")
    if finding is None:
        return dict.fromkeys(wanted, False)
    seen = finding.look
    names = dict(zip(ATTRIBUTES, (*seen.color_names(), seen.pattern, seen.accessory), strict=True))
    return {name: names[name] == value for name, value in wanted.items()}


def matched(things: Sequence[Thing], verdict: Verdict) -> list[Finding | None]:
    """A finding of its class for every thing, no finding twice, so that as many attributes as possible are right."""
    found: list[Finding | None] = [None] * len(things)
    for kind in {thing.kind for thing in things}:
        indices = [index for index, thing in enumerate(things) if thing.kind == kind]
        candidates = [finding for finding in verdict.things if finding.kind == kind]
        padded = [*candidates, *[None] * max(0, len(indices) - len(candidates))]

        def right(chosen: Sequence[Finding | None], indices: Sequence[int] = indices) -> int:
            pairs = zip(indices, chosen, strict=True)
            return sum(sum(right_attributes(finding, things[index].look).values()) for index, finding in pairs)

        for index, finding in zip(indices, max(permutations(padded, len(indices)), key=right), strict=True):
            found[index] = finding
    return found


def described_shares(scenes: Sequence[Scene], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """`all`: images on which all attributes of all things are right; `classes`: on which all things are found.

    `attributes`: attributes that are right, over those of things that are found.
    """
    whole: list[bool] = []
    classes: list[bool] = []
    attributes: list[bool] = []
    for scene, verdict in zip(scenes, verdicts, strict=True):
        found = matched(scene.things, verdict)
        rights = [right_attributes(finding, thing.look) for finding, thing in zip(found, scene.things, strict=True)]
        whole.append(all(all(right.values()) for right in rights))
        classes.append(None not in found)
        attributes += [
            value for right, finding in zip(rights, found, strict=True) if finding for value in right.values()
        ]
    named = {"all": whole, "classes": classes, "attributes": attributes}
    return {name: round(float(np.mean(values)), 4) if values else 0.0 for name, values in named.items()}


@dataclass(frozen=True, kw_only=True)
class Generator:
    """The parts of the base that turn prompts into images."""

    unet: UNet2DConditionModel
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Iterator[Image.Image]:
        """One image per prompt, each from its own seed, in batches."""
        device = self.unet.device
        ids: Any = self.tokenizer([*prompts, ""], padding="max_length", truncation=True, return_tensors="pt")
        hidden = self.text_encoder(ids["input_ids"].to(device)).last_hidden_state
        vae: Any = self.vae
        for start in range(0, len(prompts), BATCH):
            seeds = range(start, min(start + BATCH, len(prompts)))
            latents = draw_latents(self.unet, hidden[seeds.start : seeds.stop], hidden[-1:], seeds)
            pixels = vae.decode(latents.to(vae.device)).sample.clamp(-1, 1)
            arrays = ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            yield from (Image.fromarray(array) for array in arrays)


def measure_appearance(generate: Generator, judge: Judge, counts: AppearanceCounts) -> dict[str, dict[str, float]]:
    """`described_shares` of prompts of one, two and three things."""
    shares: dict[str, dict[str, float]] = {}
    for things, (name, count) in enumerate((("one", counts.one), ("two", counts.two), ("three", counts.three)), 1):
        scenes = described_scenes(SEED, things, count)
        images = list(generate([full_caption(scene.things, scene.background) for scene in scenes]))
        shares[name] = described_shares(scenes, judge(images))
    return shares
