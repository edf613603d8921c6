"""The generation request, which Python, the command line and the server share."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, InstanceOf, field_validator
from torch import Tensor

from tara.adapters.adapter import Adapter
from tara.core.tokens import Span
from tara.errors import TaraError, nearest, warn
from tara.inference.active_adapter import ActiveAdapter, ActiveAdapters, AdapterLike, as_active_adapter
from tara.inference.binding import find_words
from tara.inference.settings import GenerationSettings
from tara.storage.images import read_image
from tara.storage.validation import build

Seed = Annotated[int, Field(ge=0, lt=2**63)]
AdapterLists = Sequence[AdapterLike] | Sequence[Sequence[AdapterLike]]
"""One list of adapters for all prompts, or one list for each prompt."""

EVERYWHERE = "everywhere"
BOXES = {
    "left": (0.0, 0.0, 0.5, 1.0),
    "right": (0.5, 0.0, 1.0, 1.0),
    "top": (0.0, 0.0, 1.0, 0.5),
    "bottom": (0.0, 0.5, 1.0, 1.0),
}
"""Left, top, right and bottom edge in fractions of the image, by name."""
GRID = 128  # height and width of the mask of a given region, which is resized for each layer

RegionMasks = Mapping[str, Tensor | None]
"""For each rare word with a given region: a mask (`GRID`, `GRID`), or None for the whole image."""


class GenerationRequest(BaseModel):
    """What to generate: a prompt, its adapters, seeds (one image each) and settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    adapters: tuple[InstanceOf[ActiveAdapter], ...] = ()
    seeds: tuple[Seed, ...] = (0,)
    settings: GenerationSettings = GenerationSettings()

    @field_validator("prompt")
    @classmethod
    def _names_no_files(cls, value: str) -> str:
        if tag := re.search(r"<lora:[^<>]*>", value):
            raise ValueError(f"has '{tag[0]}', which only the command line reads; pass the adapter in adapters")
        return value

    def check(self) -> None:
        """Check what can be checked without a base, because loading one may take minutes.

        Raises:
            TaraError: for an unreadable image, or an adapter whose words are unknown, missing or ambiguous.
        """
        for image in (self.settings.image, self.settings.mask):
            if image is not None and not hasattr(image, "convert"):
                read_image(image)  # pyright: ignore[reportArgumentType]
        composer = self.settings.composer_for(self.adapters)
        if composer.masked or composer.regional:
            _advise_on_words(find_words(self.prompt, self.adapters))
        for active in self.adapters:
            if not active.weight:
                warn(f"{active.name} has weight 0, so it changes nothing. Give it a weight, or leave it out.")
        parse_regions(self.settings.region, {active.rare_word for active in self.adapters})


def _advise_on_words(located: Sequence[tuple[ActiveAdapter, Sequence[Span]]]) -> None:
    """Warn (TaraWarning) if a rare word occurs more than once in the prompt, or has several class words."""
    classes: dict[str, set[str]] = {}
    for active, spans in located:
        classes.setdefault(active.rare_word.casefold(), set()).add(active.class_word)
        if len(spans) > 1:
            warn(
                f"'{active.rare_word}' is in the prompt {len(spans)} times, and {active.name} acts on each; "
                "images may show the subject as often."
            )
    for rare_word, class_words in classes.items():
        if len(class_words) > 1:
            warn(
                f"'{rare_word}' is the rare word of {' and '.join(sorted(class_words))}, distinguished by the word "
                "after it. Subjects mix less with different rare words: FILE:rare_word=NEW."
            )


def requests_for(
    prompt: str | Sequence[str],
    adapters: AdapterLists,
    settings: GenerationSettings,
    seeds: int | Iterable[int] = (0,),
) -> list[GenerationRequest]:
    """One request for each prompt, with its adapters loaded: the arguments of `tara.Pipeline` and `tara.prepare`.

    Raises:
        TaraError: if there is no prompt, if ``adapters`` is neither one list nor one list per prompt, for an invalid
            seed, or for a file that `tara.load_adapter` refuses.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise TaraError("There is no prompt. Give at least one.")
    seeds = (seeds,) if isinstance(seeds, int) else tuple(seeds)
    per_prompt = _adapters_per_prompt(adapters, len(prompts))
    return [
        build(GenerationRequest, {"prompt": text, "adapters": own, "seeds": seeds, "settings": settings})
        for text, own in zip(prompts, per_prompt, strict=True)
    ]


def _adapters_per_prompt(adapters: AdapterLists, prompts: int) -> list[ActiveAdapters]:
    """Load the adapters of each prompt. Each file is read once and shared by the prompts that name it."""
    if isinstance(adapters, (str, Path, Adapter, ActiveAdapter)):
        raise TaraError("adapters is one adapter, not a list. Write adapters=[...].")
    flat = cast(list[AdapterLike], [entry for entry in adapters if not isinstance(entry, (list, tuple))])
    if len(flat) == len(adapters):
        return [tuple(as_active_adapter(entry) for entry in flat)] * prompts
    if flat or len(adapters) != prompts:
        raise TaraError(f"adapters has {len(adapters)} entries. Give one list for all prompts, or {prompts} lists.")
    lists = cast(Sequence[Sequence[AdapterLike]], adapters)
    named = {str(entry): as_active_adapter(entry) for own in lists for entry in own if isinstance(entry, (str, Path))}
    return [
        tuple(named[str(entry)] if isinstance(entry, (str, Path)) else as_active_adapter(entry) for entry in own)
        for own in lists
    ]


def parse_regions(regions: Sequence[str], rare_words: Collection[str]) -> RegionMasks:
    """Read ``WORD=REGION``: left, right, top, bottom, everywhere, a box ``0,0,0.5,1``, or the path of a mask image.

    Raises:
        TaraError: for an unknown word or region, a box outside the image, and two regions that overlap.
    """
    known = {word.casefold(): word for word in rare_words}
    masks: dict[str, Tensor | None] = {}
    for region in regions:
        word, equals, where = (part.strip() for part in region.partition("="))
        if not equals or not where:
            raise TaraError(f"The region '{region}' is not of the form WORD=REGION. Write for instance xlo=left.")
        if word.casefold() not in known:
            hint = nearest(word, known)
            raise TaraError(f"The region '{region}' is for '{word}', which is no adapter's rare word.{hint}")
        masks[known[word.casefold()]] = None if where == EVERYWHERE else _mask(region, where)
    for (word, mask), (other, second) in combinations(masks.items(), 2):
        if mask is not None and second is not None and bool((mask & second).any()):
            raise TaraError(f"The regions of '{word}' and '{other}' overlap. Regions must be disjoint.")
    return masks


def _mask(region: str, where: str) -> Tensor:
    if where not in BOXES and "," not in where and Path(where).is_file():
        grey = read_image(Path(where)).convert("L").resize((GRID, GRID), Image.Resampling.BILINEAR)
        mask = torch.from_numpy(np.array(grey) > 127)
    else:
        left, top, right, bottom = _box(region, where)
        at = (torch.arange(GRID) + 0.5) / GRID
        mask = ((at >= top) & (at < bottom))[:, None] & ((at >= left) & (at < right))[None]
    if not mask.any():
        raise TaraError(f"The region '{region}' is empty. A mask image is white where the concept should be.")
    return mask


def _box(region: str, where: str) -> tuple[float, float, float, float]:
    if where in BOXES:
        return BOXES[where]
    try:
        left, top, right, bottom = map(float, where.split(","))
    except ValueError:
        names = ", ".join((*BOXES, EVERYWHERE))
        raise TaraError(
            f"The region '{region}' is not known.{nearest(where, BOXES)} Write {names}, a box such as 0,0,0.5,1 "
            "(left, top, right, bottom as fractions of the image), or the path of a mask image."
        ) from None
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise TaraError(
            f"The region '{region}' is not inside the image. A box is left,top,right,bottom as fractions from 0 to 1, "
            "such as 0,0,0.5,1."
        )
    return left, top, right, bottom
