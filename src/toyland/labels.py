"""What captions say, token by token: the questions that the text encoder learns to answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from toyland.captions import FEATURES, Caption, caption
from toyland.world import ACCESSORIES, BACKGROUNDS, CLASSES, COLORS, NAMED_STYLES, PATTERNS, Scene, random_scene

IGNORE = -100
"""Stands where a question has no sense."""
MOST_THINGS = 3
COLOR_NAMES = (*COLORS, "unsaid")
"""What a colour question may be answered with."""
MENTION_LABELS: dict[str, tuple[str, ...]] = {
    "thing": ("first", "second", "third"),
    "class": CLASSES,
    "body": COLOR_NAMES,
    "second": COLOR_NAMES,
    "third": COLOR_NAMES,
    "pattern": (*PATTERNS, "unsaid"),
    "accessory": (*ACCESSORIES, "unsaid"),
}
"""Asked at every token of a mention."""
SCENE_LABELS: dict[str, tuple[str, ...]] = {
    "background": (*BACKGROUNDS, "unsaid"),
    "style": ("none", *NAMED_STYLES),
    **{f"class {index}": (*CLASSES, "absent") for index in range(MOST_THINGS)},
}
"""Asked at every token after the last mention."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Captions as tokens, and for each label what is true at each token, `IGNORE` where a question has no sense."""

    ids: Tensor
    labels: dict[str, Tensor]


def _mention_answers(scene: Scene, index: int, named: frozenset[str]) -> dict[str, str]:
    """What a mention of thing `index` says of it; features that it does not name, or that are missing, are unsaid."""
    thing = scene.things[index]
    body, second, third = thing.look.color_names()
    values = {
        "body": body,
        "second": second,
        "third": third,
        "pattern": thing.look.pattern,
        "accessory": thing.look.accessory,
    }
    said = {name: values[name] if name in named else "unsaid" for name in FEATURES}
    if said["accessory"] in ("none", "unsaid"):
        said["third"] = "unsaid"
    if said["pattern"] == "plain" and "second" not in named:
        said["pattern"] = "unsaid"  # "a brown cat" does not say that it is plain
    if said["accessory"] == "none":
        said["accessory"] = "unsaid"
    return {"thing": MENTION_LABELS["thing"][index], "class": thing.kind, **said}


def _scene_answers(scene: Scene, said: Caption) -> dict[str, str]:
    kinds = [thing.kind for thing in scene.things] + ["absent"] * (MOST_THINGS - len(scene.things))
    return {
        "background": scene.background if said.names_background else "unsaid",
        "style": scene.style if said.names_style else "none",
        **{f"class {index}": kind for index, kind in enumerate(kinds)},
    }


def _answers(scene: Scene, said: Caption, offsets: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
    """Label, answer, and the tokens at which it is due, a mask; `offsets` (tokens, 2) are characters, 0 for padding."""
    start, end = offsets[:, 0], offsets[:, 1]
    # a causal encoder knows the scene after its last mention, and so do the padding tokens
    known = (start >= max(mention.end for mention in said.mentions)) | (end == 0)
    known[0] = False
    for name, answer in _scene_answers(scene, said).items():
        yield name, answer, known
    for mention in said.mentions:
        inside = (start >= mention.start) & (end <= mention.end) & (end > 0)
        for name, answer in _mention_answers(scene, mention.thing, mention.named).items():
            yield name, answer, inside


def label(scenes: Sequence[Scene], captions: Sequence[Caption], tokenizer: CLIPTokenizer, length: int) -> Batch:
    """Tokens (rows, length) and, for each label, the index of the right answer at each token, (rows, length)."""
    coded: Any = tokenizer(
        [said.text for said in captions],
        padding="max_length",
        truncation=True,
        max_length=length,
        return_offsets_mapping=True,
    )
    options = {**MENTION_LABELS, **SCENE_LABELS}
    labels = {name: np.full((len(captions), length), IGNORE) for name in options}
    for row, (scene, said) in enumerate(zip(scenes, captions, strict=True)):
        for name, answer, tokens in _answers(scene, said, np.asarray(coded["offset_mapping"][row])):
            labels[name][row, tokens] = options[name].index(answer)
    return Batch(ids=torch.tensor(coded["input_ids"]), labels={name: torch.from_numpy(v) for name, v in labels.items()})


def caption_batch(rng: np.random.Generator, tokenizer: CLIPTokenizer, rows: int, length: int = 64) -> Batch:
    """Labelled captions of random scenes, with two and three things more often than the base's pictures show them."""
    scenes = [random_scene(rng, (0.3, 0.45, 0.25)) for _ in range(rows)]
    return label(scenes, [caption(scene, rng) for scene in scenes], tokenizer, length)
