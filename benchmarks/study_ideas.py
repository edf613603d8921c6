"""Ideas for more faithful composition, as the study tries them: each changes text, training or attention a little.

None needs boxes from a user, a segmenter or optimisation during sampling. `RegionProcessor` gets its regions from the
judge: it shows what an assignment of regions to subjects could gain at best, not what a product could do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from toyland_cast import SAMPLING_STEPS, Member

from tara.analysis.attention import SubjectTokens, subjects_of
from tara.evaluation.scores import Box
from tara.families.base import Base
from tara.families.family import Family
from tara.families.processors import CONDITIONING_KEY, TextConditioning, TextKVProcessor
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.batch import PreparedBatch, applied, prepared_batch, prompt_rows
from tara.inference.composers import Composer
from tara.inference.pipeline import Pipeline
from tara.inference.request import requests_for
from tara.inference.settings import GenerationSettings
from tara.inference.text_kv import CachedTextEncoder
from tara.training import loop
from tara.training.concept_settings import ConceptSettings
from tara.training.loop import StepRecord, Training
from tara.training.settings import concept_settings
from tara.training.text_batch import TextBatch
from tara.training.weights import ConceptWeights
from toyland.render import SIZE

Rows = Sequence[Sequence[SubjectTokens]]
"""For each conditional row the subjects of its prompt, with the tokens of their words."""
Edit = Callable[[TextConditioning, Rows], TextConditioning]
"""Other keys and values for the same prompts; the conditional rows are the last ones."""
Regions = Sequence[Sequence[Box | None]]
"""For each conditional row the box of each subject, as fractions of the image's sides; None where none is known."""

GRID = 16
"""Side of the embedded base's latents."""


def generate_edited(
    base: Base,
    prompts: Sequence[str],
    adapters: Sequence[Sequence[ActiveAdapter]],
    seed: int,
    *,
    edit: Edit | None = None,
    delay: int = 0,
    regions: Regions | None = None,
    strength: float = 0.0,
) -> list[Image.Image]:
    """The images that `tara.Pipeline` generates of these prompts, with one thing changed.

    Args:
        base: the embedded base.
        prompts: one image each.
        adapters: of each prompt.
        seed: of all images.
        edit: changes keys and values.
        delay: steps at the beginning without adapters, in which the base lays out the scene (as in LaTexBlend).
        regions: binds each subject's words to its box.
        strength: of ``regions``.
    """
    settings = GenerationSettings(steps=SAMPLING_STEPS, guidance_scale=base.defaults.guidance_scale)
    rows = prompt_rows(base, requests_for(prompts, adapters, settings))
    encoder = CachedTextEncoder(base)
    batch = prepared_batch(encoder, base.pipe, rows, settings)
    if delay:
        bare = prepared_batch(encoder, base.pipe, [replace(row, acting=()) for row in rows], settings)
        composer = Composer(description="", masked=True, turns=lambda step, count: (0,) if step < delay else (1,))
        rows = [replace(row, composer=composer) for row in rows]
        batch = PreparedBatch(rows, batch.arguments, (*bare.evaluations, *batch.evaluations))
    arguments = dict(batch.arguments)
    conditioning: TextConditioning = arguments["cross_attention_kwargs"][CONDITIONING_KEY]
    subjects = [subjects_of(base.tokenize(prompt), own) for prompt, own in zip(prompts, adapters, strict=True)]
    if edit is not None:
        arguments["cross_attention_kwargs"] = {CONDITIONING_KEY: edit(conditioning, subjects)}
    with applied(base, batch):
        if regions is not None:
            _bind_to_regions(base, region_bias(subjects, regions, conditioning, strength))
        generators = [torch.Generator("cpu").manual_seed(seed) for _ in prompts]
        return list(base.pipe(**arguments, generator=generators, num_inference_steps=SAMPLING_STEPS).images)


def tie_keys(conditioning: TextConditioning, rows: Rows) -> TextConditioning:
    """Each rare word's keys are its class word's, exactly (Perfusion, arXiv 2305.01644; ConceptSplit)."""

    def tied(keys: Tensor, row: int, subjects: Sequence[SubjectTokens]) -> None:
        for subject in subjects:
            keys[row, list(subject.rare_positions)] = keys[row, list(subject.class_positions)].mean(0)

    return _with_keys(conditioning, rows, tied)


def set_apart(conditioning: TextConditioning, rows: Rows, factor: float) -> TextConditioning:
    """Keys of rare words of one class go ``factor`` times as far from their mean: ``k_i = mean + s (k_i - mean)``."""

    def apart(keys: Tensor, row: int, subjects: Sequence[SubjectTokens]) -> None:
        for class_word in {subject.active.class_word for subject in subjects}:
            same = [subject for subject in subjects if subject.active.class_word == class_word]
            own = torch.stack([keys[row, list(subject.rare_positions)].mean(0) for subject in same])
            for subject, shift in zip(same, (factor - 1) * (own - own.mean(0)), strict=True):
                keys[row, list(subject.rare_positions)] += shift

    return _with_keys(conditioning, rows, apart)


def _with_keys(
    conditioning: TextConditioning, rows: Rows, change: Callable[[Tensor, int, Sequence[SubjectTokens]], None]
) -> TextConditioning:
    first = conditioning.rows - len(rows)
    kv = {layer: (keys.clone(), values) for layer, (keys, values) in conditioning.kv.items()}
    for keys, _ in kv.values():
        for row, subjects in enumerate(rows):
            change(keys, first + row, subjects)
    return replace(conditioning, kv=kv)


class TiedTraining(Training):
    """Trains values alone: the keys of the rare word are its class word's, as `tie_keys` makes them."""

    def steps(self) -> Iterator[StepRecord]:
        """As `Training.steps`."""
        with mock.patch.object(loop, "text_conditioning", partial(_tied_conditioning, loop.text_conditioning)):
            yield from super().steps()


def _tied_conditioning(
    conditioned: Callable[..., TextConditioning], base: Base, text: TextBatch, weights: ConceptWeights
) -> TextConditioning:
    conditioning = conditioned(base, text, weights)
    kv = {layer: (keys.clone(), values) for layer, (keys, values) in conditioning.kv.items()}
    for keys, _ in kv.values():
        for row, caption in enumerate(text.captions):
            keys[row, list(caption.first_rare_positions)] = keys[row, list(caption.class_positions)].mean(0)
    return replace(conditioning, kv=kv)


def region_bias(rows: Rows, regions: Regions, conditioning: TextConditioning, strength: float) -> Tensor:
    """(rows, tokens, grid, grid): added to attention scores, ``strength`` in a subject's box, minus it outside."""
    tokens = next(iter(conditioning.kv.values()))[0].shape[1]
    bias = torch.zeros(conditioning.rows, tokens, GRID, GRID)
    first = conditioning.rows - len(rows)
    for row, (subjects, boxes) in enumerate(zip(rows, regions, strict=True)):
        for subject, box in zip(subjects, boxes, strict=True):
            if box is None:
                continue
            left, top, right, bottom = (min(max(round(GRID * side), 0), GRID) for side in box)
            inside = torch.zeros(GRID, GRID)
            inside[top:bottom, left:right] = 1
            bias[first + row, [*subject.rare_positions, *subject.class_positions]] = strength * (2 * inside - 1)
    return bias


class RegionProcessor(TextKVProcessor):
    """Attention to each subject's words is raised in its region and lowered elsewhere."""

    def __init__(self, layer: str, stock: Any, family: Family, bias: Tensor) -> None:
        super().__init__(layer, stock, family)
        self.bias = bias

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        tara: TextConditioning | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if tara is not None and self.layer in tara.kv:
            side = round(hidden_states.shape[1] ** 0.5)
            attention_mask = F.adaptive_avg_pool2d(self.bias, side).flatten(2).mT.to(hidden_states)
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, *args, tara=tara, **kwargs)


def _bind_to_regions(base: Base, bias: Tensor) -> None:
    ours = base.denoiser.attn_processors
    base.denoiser.set_attn_processor(
        {name: RegionProcessor(one.layer, one.stock, base.family, bias) for name, one in ours.items()}
    )


@dataclass(frozen=True, kw_only=True)
class Diptychs:
    """Half of the photos are placed beside an image that the base generated, and the caption names both (TokenVerse).

    ``same_class`` partners are things of the subject's own class. Without ``partner_counts`` the loss covers the
    subject's half alone; with it the partner's half keeps the adapter from changing what the base makes of other words.
    """

    same_class: bool
    partner_counts: bool

    def __call__(self, members: Sequence[Member], base: Base, folder: Path) -> list[ConceptSettings]:
        """The members' photos and as many diptychs, with captions and, where only a half counts, masks."""
        return [self._concept(member, Pipeline(base), members, folder / member.word) for member in members]

    def _concept(self, member: Member, pipeline: Pipeline, members: Sequence[Member], folder: Path) -> ConceptSettings:
        photos, masks, class_word = folder / "photos", folder / "masks", member.subject.kind
        for place in (photos, masks):
            place.mkdir(parents=True, exist_ok=True)
        others = [other.subject.kind for other in members if other.subject.kind != class_word]
        for number, path in enumerate(sorted(member.photos.glob("*.png"))):
            with Image.open(path) as stored:
                photo = stored.convert("RGB")
            partner = class_word if self.same_class else others[number % len(others)]
            (generated,) = pipeline([f"a photo of a {partner}"], seeds=[number], steps=SAMPLING_STEPS)
            both = Image.new("RGB", (2 * SIZE, SIZE))
            both.paste(photo, (0, 0))
            both.paste(generated, (SIZE, 0))
            half = Image.new("L", both.size)
            half.paste(255, (0, 0, SIZE, SIZE))
            for name, image, mask in (
                (f"{number}", photo, Image.new("L", photo.size, 255)),
                (f"{number}-both", both, half),
            ):
                image.save(photos / f"{name}.png")
                mask.save(masks / f"{name}.png")
            caption = f"a photo of a {member.word} {class_word} and a {partner}"
            (photos / f"{number}-both.txt").write_text(caption, encoding="utf-8")
        return concept_settings(
            images=photos,
            rare_word=member.word,
            class_word=class_word,
            masks=None if self.partner_counts else masks,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Training settings for such photos: they keep their shape."""
        return {"buckets": True, "masked_loss": not self.partner_counts, "background_weight": 0.0}


SET_APART = {factor: partial(set_apart, factor=factor) for factor in (2.0, 4.0)}
