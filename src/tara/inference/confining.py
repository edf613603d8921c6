"""Confines adapters to regions: finds each region in the first steps, then applies each adapter in its region only."""

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor, nn

from tara.core.attention_maps import RunningMean, map_size, word_maps
from tara.core.lora import LowRank
from tara.core.position_blocks import PositionBlocks, position_blocks
from tara.core.regions import labels_at, region_labels, region_scores
from tara.errors import warn
from tara.families.base import Base
from tara.families.processors import CONDITIONING_KEY, Watch
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.request import GRID

LAYOUT = 0.84  # fraction of the noise schedule; at higher timesteps the base lays out the scene and no adapter acts
RESOLUTIONS = 2  # number of cross-attention resolutions whose maps are used, from the coarsest


@dataclass(frozen=True, eq=False)
class ConfinedAdapter:
    """An adapter confined to a region of one image. ``mask`` is its given region; None: ``class_tokens`` find it."""

    active: ActiveAdapter
    class_tokens: tuple[int, ...]
    mask: Bool[Tensor, "_height _width"] | None = None


@dataclass(frozen=True, eq=False)
class ImageRegions:
    """The regions of one image. ``labels`` holds the number of each position's word, from 1; 0: no adapter acted."""

    words: tuple[str, ...]
    labels: Int[Tensor, "height width"]


class ConfinedAdapters:
    """The regions of each image during the pipeline calls of one batch, and the deltas that act in them.

    A network call has one text per row, ``[unconditional..., conditional...]``. After them come the regional texts: for
    each row, one text per concept.

    Args:
        base: the base.
        images: the confined adapters (concepts) of each image.
        guided: whether there are unconditional rows.
    """

    def __init__(self, base: Base, images: Sequence[Sequence[ConfinedAdapter]], guided: bool) -> None:
        self._base, self._images, self._guided = base, images, guided
        self.rows = len(images) * (2 if guided else 1)
        adapters = list({id(concept.active): concept.active for concepts in images for concept in concepts}.values())
        numbers = {id(active): number for number, active in enumerate(adapters, start=1)}
        # (images, 1 + concepts): for each label, the adapter's index on the leading axis of the deltas; 0: no adapter
        self._adapter_of = _padded([[0, *(numbers[id(concept.active)] for concept in concepts)] for concepts in images])
        of_rows = list(images) * (2 if guided else 1)
        after = [self.rows + sum(map(len, of_rows[:row])) for row in range(self.rows)]
        # (rows, 1 + concepts): for each label, the index of the text that its positions read
        self._text_of = _padded([[row, *range(after[row], after[row] + len(of_rows[row]))] for row in range(self.rows)])
        of_texts = [0] * self.rows + [numbers[id(concept.active)] for concepts in of_rows for concept in concepts]
        # (texts,): the index of the adapter whose deltas act where the text is read; 0: no adapter
        self._adapter_of_text = torch.tensor(of_texts)
        self.deltas = _stacked(adapters, base.device, base.dtype)
        self._sought = any(map(_is_sought, images))
        self._latents = (1, 1)
        self.begin()

    def begin(self, timestep: float = math.inf) -> None:
        """Drop the regions found for the last images. Given regions act from the first network call on."""
        nothing = torch.zeros(1, 1, dtype=torch.long)
        self.labels = [nothing if _is_sought(concepts) else given_labels(concepts) for concepts in self._images]
        self._reading = self._sought
        self._maps: dict[int, list[RunningMean]] = {}
        self._blocks: dict[int, tuple[PositionBlocks, PositionBlocks]] = {}
        self._timestep, self._acting = timestep, False

    def begin_call(self, _denoiser: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Forward pre-hook of the denoiser. Decides whether adapters act in this network call."""
        given = (kwargs.get("cross_attention_kwargs") or {}).get(CONDITIONING_KEY)
        self._acting = False
        if given is None or given.regional is not self:
            return
        latents, timestep = (
            args[i] if len(args) > i else kwargs[name] for i, name in enumerate(("sample", "timestep"))
        )
        now = float(torch.as_tensor(timestep).max())
        if now > self._timestep:  # timesteps of an image never rise, so a higher one means that new images have begun
            self.begin(now)
        self._timestep, self._latents = now, (int(latents.shape[-2]), int(latents.shape[-1]))
        if self._reading and self._maps and now < LAYOUT * self._base.noise_schedule.timesteps:
            self.labels = [
                self._found(image) if _is_sought(concepts) else labels
                for image, (concepts, labels) in enumerate(zip(self._images, self.labels, strict=True))
            ]
            self._reading = False
            self._blocks.clear()
        self._acting = any(bool(labels.any()) for labels in self.labels)

    def end_call(self, *_: object) -> None:
        """Forward hook of the denoiser. Ends the effect of the adapters."""
        self._acting = False

    @property
    def watch(self) -> Watch | None:
        """The function that reads attention maps, until the regions are found; then None."""
        return self._read if self._reading else None

    @torch.no_grad()
    def _read(self, _layer: str, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        positions = query.shape[2]
        if len(self._maps) >= RESOLUTIONS and positions > sorted(self._maps)[RESOLUTIONS - 1]:
            return
        means = self._maps.setdefault(positions, [RunningMean() for _ in self._images])
        for mean, concepts, row in zip(
            means, self._images, range(self.rows - len(self._images), self.rows), strict=True
        ):
            if _is_sought(concepts):
                at = slice(row, row + 1)
                words = [concept.class_tokens for concept in concepts if concept.mask is None]
                mean.add(word_maps(query[at], key[at], words, None if mask is None else mask[at])[0])

    def _found(self, image: int) -> Tensor:
        """Labels at the latents' resolution: the given regions, and elsewhere the regions found from the maps."""
        coarsest = sorted(self._maps)[:RESOLUTIONS]
        maps = [self._maps[size][image].mean.unflatten(-1, map_size(size, self._latents)) for size in coarsest]
        sought = [number for number, concept in enumerate(self._images[image]) if concept.mask is None]
        numbers = torch.tensor([0, *(number + 1 for number in sought)])
        found = numbers[region_labels(region_scores(maps)).cpu()]
        given = labels_at(given_labels(self._images[image]), self._latents)
        return torch.where(given > 0, given, labels_at(found, self._latents))

    def regions_of(self, image: int) -> ImageRegions:
        """The regions of one image of the last pipeline call, at the latents' resolution."""
        words = tuple(concept.active.rare_word for concept in self._images[image])
        return ImageRegions(words, labels_at(self.labels[image], self._latents))

    def text_blocks(self, positions: int) -> PositionBlocks | None:
        """See `tara.families.processors.RegionalText`."""
        return self._blocks_at(positions)[0] if self._acting else None

    def text_delta(self, path: str, text: Tensor) -> LowRank | None:
        """See `tara.families.processors.RegionalText`."""
        delta = self.deltas.get(path)
        return None if delta is None else delta.take(self._adapter_of_text.to(text.device)[text])

    def _blocks_at(self, positions: int) -> tuple[PositionBlocks, PositionBlocks]:
        """All positions grouped by text, and the positions in regions grouped by adapter."""
        if positions not in self._blocks:
            size = map_size(positions, self._latents)
            labels = torch.stack([labels_at(of_image, size).flatten() for of_image in self.labels])
            of_rows, tables = (torch.cat([table] * (self.rows // len(table))) for table in (labels, self._adapter_of))
            adapters, texts = (table.gather(1, of_rows).to(self._base.device) for table in (tables, self._text_of))
            block = max(1, round(math.sqrt(positions) / 2))
            self._blocks[positions] = (
                position_blocks(texts, block),
                position_blocks(adapters - (adapters == 0).long(), block),
            )
        return self._blocks[positions]

    def add_delta(self, path: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Forward hook of a layer outside the text's attentions. Adds each adapter's delta in its region."""
        if not self._acting:
            return None
        x: Tensor = args[0]
        if x.ndim == 2:  # one vector per row, such as the timestep embedding
            warn(
                f"The layer '{path}' computes one value for the whole image and cannot be confined to regions: deltas "
                "of this layer have no effect with the composer 'regions'."
            )
            return None
        low_rank = self.deltas[path]
        if x.ndim == 3:
            return self._blocks_at(x.shape[1])[1].add_delta(output, low_rank, x)
        module = getattr(module, "base_layer", module)  # PEFT wraps layers that have a LoRA loaded
        assert isinstance(module, nn.Conv2d)
        assert not isinstance(module.padding, str)
        patches = F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride).mT
        added = self._blocks_at(patches.shape[1])[1].add_delta(output.flatten(2).mT, low_rank, patches)
        return added.mT.unflatten(2, output.shape[2:])


def _is_sought(concepts: Sequence[ConfinedAdapter]) -> bool:
    """Whether at least one region of the image must be found, because it is not given."""
    return any(concept.mask is None for concept in concepts)


def given_labels(concepts: Sequence[ConfinedAdapter]) -> Tensor:
    """Labels (`GRID`, `GRID`) of the given regions; 0 in all other cells."""
    labels = torch.zeros(GRID, GRID, dtype=torch.long)
    for number, concept in enumerate(concepts, start=1):
        if concept.mask is not None:
            labels[concept.mask] = number
    return labels


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])


def _stacked(adapters: Sequence[ActiveAdapter], device: torch.device, dtype: torch.dtype) -> dict[str, LowRank]:
    """Stack the adapters' deltas outside the text's keys and values along a leading axis. Entry 0 is a delta of zero.

    Weights and scales are multiplied into B. Deltas of lower rank are padded with zeros.
    """
    paths = dict.fromkeys(
        path for active in adapters if active.global_strength for path in active.adapter.global_deltas
    )
    stacked: dict[str, LowRank] = {}
    for path in paths:
        parts = [(active.global_strength, active.adapter.global_deltas.get(path)) for active in adapters]
        there = [part for _, part in parts if part is not None]
        rank = max(part.rank for part in there)
        a = torch.zeros(len(adapters) + 1, rank, there[0].d_in)
        b = torch.zeros(len(adapters) + 1, there[0].d_out, rank)
        for number, (strength, part) in enumerate(parts, start=1):
            if part is not None:
                a[number, : part.rank], b[number, :, : part.rank] = (
                    part.a.float(),
                    strength * part.scale * part.b.float(),
                )
        stacked[path] = replace(there[0], a=a.to(device, dtype), b=b.to(device, dtype), scale=1.0)
    return stacked


@contextmanager
def confined(base: Base, adapters: ConfinedAdapters | None) -> Generator[None]:
    """In a ``with`` block, adapters act in their regions. `Base.processors` must be installed. None: no effect."""
    hooks: list[Any] = []
    try:
        if adapters is not None:
            adapters.begin()
            text = {f"{layer}.{name}" for layer in base.text_layers for name in base.family.attention_projections}
            hooks.append(base.denoiser.register_forward_pre_hook(adapters.begin_call, with_kwargs=True))
            hooks.append(base.denoiser.register_forward_hook(adapters.end_call))
            for path in adapters.deltas.keys() - text:
                hooks.append(base.layer(path).register_forward_hook(partial(adapters.add_delta, path)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
