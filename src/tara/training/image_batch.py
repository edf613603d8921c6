"""The images of one training batch: concept by concept, ``[photos..., class images...]`` in each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tara.core.losses import NoiseSchedule
from tara.core.noise import step_randomness
from tara.training.concepts import ImageSource
from tara.training.data.encoded import Caption, Latents


@dataclass(frozen=True, kw_only=True, eq=False)
class SameShapeRows:
    """The images of one shape: what the network takes at once. ``rows`` are their numbers among all rows."""

    rows: tuple[int, ...]
    noisy: Float[Tensor, "rows channels height width"]
    target: Float[Tensor, "rows channels height width"]
    timesteps: Int[Tensor, " rows"]
    sizes: Int[Tensor, "rows 6"]
    weights: Float[Tensor, " rows"] | None
    focus: Float[Tensor, "rows 1 height width"] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageBatch:
    """The image side of a call: every row's caption, and the images by shape (one shape without buckets)."""

    captions: tuple[Caption, ...]
    groups: tuple[SameShapeRows, ...]

    def in_order(self, values: Sequence[Float[Tensor, " rows"]]) -> Float[Tensor, " rows"]:
        """One value for each row of each shape, as one value for each row of the call."""
        joined = torch.cat(list(values))
        numbers = torch.tensor([row for group in self.groups for row in group.rows], device=joined.device)
        return joined[numbers.argsort()]


class _Row(NamedTuple):
    """What was chosen for one row."""

    latents: Latents
    variant: int
    timestep: Tensor
    posterior_noise: Tensor
    noise: Tensor


def image_batch(
    sources: Sequence[Sequence[ImageSource]],
    schedule: NoiseSchedule,
    *,
    seed: int,
    call: int,
    batch_size: int,
    snr_gamma: float | None,
) -> ImageBatch:
    """Choose and noise the images of a call; each source's rows are a function of (seed, source, call) alone."""
    captions: list[Caption] = []
    rows: list[_Row] = []
    for source in (source for of_concept in sources for source in of_concept):
        chosen = step_randomness(
            seed,
            source.key,
            call,
            rows=batch_size,
            shapes=[image.shape for image in source.latents],
            variants=source.latents[0].variants,
            timesteps=schedule.timesteps,
        )
        latents = [source.latents[photo] for photo in chosen.photos]
        parts = latents, chosen.variants, chosen.timesteps, chosen.posterior_noise, chosen.noise
        rows += [_Row(*row) for row in zip(*parts, strict=True)]
        for photo, chance in zip(chosen.photos, chosen.captions, strict=True):
            own = source.captions[photo]
            captions.append(own[int(chance * len(own))])
    shapes = [row.latents.shape for row in rows]
    groups = [[number for number, own in enumerate(shapes) if own == shape] for shape in dict.fromkeys(shapes)]
    noised = tuple(_noised(numbers, [rows[number] for number in numbers], schedule, snr_gamma) for numbers in groups)
    return ImageBatch(captions=tuple(captions), groups=noised)


def _noised(
    numbers: Sequence[int], rows: Sequence[_Row], schedule: NoiseSchedule, snr_gamma: float | None
) -> SameShapeRows:
    mean = torch.stack([row.latents.mean[row.variant] for row in rows])
    deviation = torch.stack([row.latents.deviation[row.variant] for row in rows])
    noise = torch.stack([row.noise for row in rows]).to(mean)
    timesteps = torch.stack([row.timestep for row in rows]).to(mean.device)
    latents = mean + deviation * torch.stack([row.posterior_noise for row in rows]).to(mean)
    return SameShapeRows(
        rows=tuple(numbers),
        noisy=schedule.add_noise(latents, noise, timesteps),
        target=schedule.target(latents, noise, timesteps),
        timesteps=timesteps,
        sizes=torch.stack([row.latents.sizes[row.variant] for row in rows]),
        weights=None if snr_gamma is None else schedule.min_snr_weights(timesteps, snr_gamma),
        focus=_focus(rows, mean[:, :1]),
    )


def _focus(rows: Sequence[_Row], like: Tensor) -> Float[Tensor, "rows 1 height width"] | None:
    """The rows' masks as weights; ones for a row without a mask beside one that has one."""
    masks = [None if row.latents.focus is None else row.latents.focus[row.variant] for row in rows]
    if all(mask is None for mask in masks):
        return None
    return torch.stack([like.new_ones(like.shape[1:]) if mask is None else mask for mask in masks])
