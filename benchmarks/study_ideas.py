"""Ideas for more faithful composition, as the study tries them: each changes text, training or attention a little.

None needs boxes from a user, a segmenter or optimisation while drawing. :class:`RegionProcessor` is given regions by
the judge: it tells what an assignment of places to subjects could bring at best, not what a product could do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from toyland_cast import Member

import tara
from tara.analysis.attention import Subject, subjects_of
from tara.demo import SAMPLING_STEPS
from tara.evaluation.scores import Box
from tara.families.base import Base
from tara.families.processors import KEY, TextConditioning, TextKVProcessor
from tara.inference.binding import ActiveAdapter
from tara.inference.composers import Composer
from tara.inference.pipeline import Pipeline
from tara.training.loop import Training
from tara.training.settings import ConceptSettings, concept_settings
from tara.training.text_batch import TextBatch
from toyland.render import SIZE

Rows = Sequence[Sequence[Subject]]
"""For each conditional row the subjects of its prompt, with the tokens of their words."""
Edit = Callable[[TextConditioning, Rows], TextConditioning]
"""Other keys and values for the same prompts; the conditional rows are the last ones."""
Regions = Sequence[Sequence[Box | None]]
"""For each conditional row the box of each subject, as parts of the picture's sides; None where none is known."""

GRID = 16
"""Side of the embedded base's latents."""


def draw_edited(
    backbone: Base,
    prompts: Sequence[str],
    active_adapters: Sequence[Sequence[ActiveAdapter]],
    seed: int,
    *,
    edit: Edit | None = None,
    regions: Regions | None = None,
    strength: float = 0.0,
) -> list[Image.Image]:
    """The pictures that :class:`tara.inference.pipeline.Studio` draws of these prompts, with another text or bound to places."""
    pipe = backbone.pipe
    arguments = tara.prepare(
        pipe, list(prompts), [list(own) for own in active_adapters], guidance_scale=backbone.guidance_scale
    )
    rows = [subjects_of(backbone.tokenize(prompt), own) for prompt, own in zip(prompts, active_adapters, strict=True)]
    conditioning: TextConditioning = arguments["cross_attention_kwargs"][KEY]
    if edit is not None:
        arguments["cross_attention_kwargs"] = {KEY: edit(conditioning, rows)}
    try:
        if regions is not None:
            _bind_to_places(backbone, place_bias(rows, regions, conditioning, strength))
        generators = [torch.Generator("cpu").manual_seed(seed) for _ in prompts]
        return list(pipe(**arguments, generator=generators, num_inference_steps=SAMPLING_STEPS).images)
    finally:
        tara.release(pipe)


def tie_keys(conditioning: TextConditioning, rows: Rows) -> TextConditioning:
    """Each rare word's keys are its class word's, exactly (Perfusion, arXiv 2305.01644; ConceptSplit)."""

    def tied(keys: Tensor, row: int, subjects: Sequence[Subject]) -> None:
        for subject in subjects:
            keys[row, list(subject.rare)] = keys[row, list(subject.kind)].mean(0)

    return _with_keys(conditioning, rows, tied)


def set_apart(conditioning: TextConditioning, rows: Rows, factor: float) -> TextConditioning:
    """Keys of rare words of one class go ``factor`` times as far from their mean: ``k_i = mean + s (k_i - mean)``."""

    def apart(keys: Tensor, row: int, subjects: Sequence[Subject]) -> None:
        for kind in {subject.active.class_word for subject in subjects}:
            same = [subject for subject in subjects if subject.active.class_word == kind]
            own = torch.stack([keys[row, list(subject.rare)].mean(0) for subject in same])
            for subject, shift in zip(same, (factor - 1) * (own - own.mean(0)), strict=True):
                keys[row, list(subject.rare)] += shift

    return _with_keys(conditioning, rows, apart)


def _with_keys(
    conditioning: TextConditioning, rows: Rows, change: Callable[[Tensor, int, Sequence[Subject]], None]
) -> TextConditioning:
    first = conditioning.rows - len(rows)
    kv = {layer: (keys.clone(), values) for layer, (keys, values) in conditioning.kv.items()}
    for keys, _ in kv.values():
        for row, subjects in enumerate(rows):
            change(keys, first + row, subjects)
    return replace(conditioning, kv=kv)


def delayed(steps: int) -> Composer:
    """The base alone for the first steps, in which it lays out the scene; the adapters' rows after (LaTexBlend)."""
    return Composer(
        meaning=f"no adapters in the first {steps} steps",
        everywhere=False,
        members=lambda active_adapters: ((), active_adapters),
        turn=lambda step, members: (0,) if step < steps else (1,),
    )


class TiedTraining(Training):
    """Values are learned alone: the keys of the rare word are its class word's, as :func:`tie_keys` makes them."""

    def _conditioning(self, text: TextBatch) -> TextConditioning:
        learned = super()._conditioning(text)
        kv = {layer: (keys.clone(), values) for layer, (keys, values) in learned.kv.items()}
        for keys, _ in kv.values():
            for row, caption in enumerate(text.captions):
                keys[row, list(caption.first_rare)] = keys[row, list(caption.kind)].mean(0)
        return replace(learned, kv=kv)


def place_bias(rows: Rows, regions: Regions, conditioning: TextConditioning, strength: float) -> Tensor:
    """(rows, tokens, grid, grid): added to attention scores, ``strength`` inside a subject's box and less outside."""
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
            bias[first + row, [*subject.rare, *subject.kind]] = strength * (2 * inside - 1)
    return bias


class RegionProcessor(TextKVProcessor):
    """Attention to each subject's words is raised in its region and lowered elsewhere."""

    def __init__(self, layer: str, stock: Any, bias: Tensor) -> None:
        super().__init__(layer, stock)
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


def _bind_to_places(backbone: Base, bias: Tensor) -> None:
    ours = backbone.denoiser.attn_processors
    bound = {name: RegionProcessor(one.layer, one.stock, bias) for name, one in ours.items()}
    backbone.denoiser.set_attn_processor(bound)


@dataclass(frozen=True, kw_only=True)
class Diptychs:
    """Half of the photos stand beside a picture that the base made itself, and the caption names both (TokenVerse).

    ``same_class`` partners are things of the subject's own class. Without ``partner_counts`` the loss looks at the
    subject's half alone; with it the partner's half keeps the adapter from changing what the base makes of other words.
    """

    same_class: bool
    partner_counts: bool

    def __call__(self, members: Sequence[Member], backbone: Base, folder: Path) -> list[ConceptSettings]:
        """The members' photos and as many diptychs, with captions and, where only a half counts, masks."""
        return [self._concept(member, Pipeline(backbone), members, folder / member.word) for member in members]

    def _concept(self, member: Member, pipeline: Pipeline, members: Sequence[Member], folder: Path) -> ConceptSettings:
        photos, masks, kind = folder / "photos", folder / "masks", member.subject.kind
        for place in (photos, masks):
            place.mkdir(parents=True, exist_ok=True)
        kinds = [other.subject.kind for other in members if other.subject.kind != kind]
        for number, path in enumerate(sorted(member.photos.glob("*.png"))):
            with Image.open(path) as stored:
                photo = stored.convert("RGB")
            partner = kind if self.same_class else kinds[number % len(kinds)]
            (drawn,) = pipeline([f"a photo of a {partner}"], seeds=[number], steps=SAMPLING_STEPS)
            both = Image.new("RGB", (2 * SIZE, SIZE))
            both.paste(photo, (0, 0))
            both.paste(drawn, (SIZE, 0))
            half = Image.new("L", both.size)
            half.paste(255, (0, 0, SIZE, SIZE))
            for name, picture, mask in (
                (f"{number}", photo, Image.new("L", photo.size, 255)),
                (f"{number}-both", both, half),
            ):
                picture.save(photos / f"{name}.png")
                mask.save(masks / f"{name}.png")
            caption = f"a photo of a {member.word} {kind} and a {partner}"
            (photos / f"{number}-both.txt").write_text(caption, encoding="utf-8")
        return concept_settings(
            images=photos, word=member.word, kind=kind, masks=None if self.partner_counts else masks
        )

    @property
    def settings(self) -> dict[str, Any]:
        """How such photos are trained on: as wide as they are."""
        return {"buckets": True, "masked_loss": not self.partner_counts, "background_weight": 0.0}


SET_APART = {factor: partial(set_apart, factor=factor) for factor in (2.0, 4.0)}
