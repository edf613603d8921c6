"""The images of one network call in training: concept by concept, ``[photos..., class images...]`` in each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tara.core.losses import NoiseSchedule
from tara.core.noise import StepRandomness, step_randomness
from tara.training.concepts import Material
from tara.training.data.encoded import Caption, Latents


@dataclass(frozen=True, kw_only=True, eq=False)
class SameShapeRows:
    """The images of one shape: what one network call takes."""

    rows: tuple[int, ...]
    """Their numbers among all rows of the call."""
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
        numbers = [row for part in self.groups for row in part.rows]
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        joined = torch.cat(list(values))
        return joined[torch.tensor(order, device=joined.device)]


class _Row(NamedTuple):
    """What was chosen for one row."""

    latents: Latents
    variant: int
    timestep: Tensor
    posterior_noise: Tensor
    noise: Tensor


def image_batch(
    materials: Sequence[Material],
    schedule: NoiseSchedule,
    *,
    seed: int,
    call: int,
    batch_size: int,
    snr_gamma: float | None,
) -> ImageBatch:
    """Choose and noise the images of a call; each concept's rows are a function of (seed, concept, call) alone."""
    captions: list[Caption] = []
    rows: list[_Row] = []
    for material in materials:
        drawn = _draw(material.latents, seed, material.key, call, batch_size, schedule.timesteps)
        rows += _chosen(material.latents, drawn)
        for photo, chance in zip(drawn.photos, drawn.captions, strict=True):
            own = material.captions[photo]
            captions.append(own[int(chance * len(own))])
        if material.prior is not None:
            latents = material.prior.latents
            rows += _chosen(
                latents, _draw(latents, seed, material.key + "\nclass", call, batch_size, schedule.timesteps)
            )
            captions += [material.prior.caption] * batch_size
    shapes = [row.latents.shape for row in rows]
    groups = [[number for number, own in enumerate(shapes) if own == shape] for shape in dict.fromkeys(shapes)]
    return ImageBatch(
        captions=tuple(captions),
        groups=tuple(_noised(numbers, [rows[number] for number in numbers], schedule, snr_gamma) for numbers in groups),
    )


def _draw(latents: Sequence[Latents], seed: int, key: str, call: int, rows: int, timesteps: int) -> StepRandomness:
    shapes = [photo.shape for photo in latents]
    return step_randomness(seed, key, call, rows=rows, shapes=shapes, variants=latents[0].variants, timesteps=timesteps)


def _chosen(latents: Sequence[Latents], drawn: StepRandomness) -> list[_Row]:
    photos = [latents[photo] for photo in drawn.photos]
    parts = photos, drawn.variants, drawn.timesteps, drawn.posterior_noise, drawn.noise
    return [_Row(*row) for row in zip(*parts, strict=True)]


def _noised(
    numbers: Sequence[int], rows: Sequence[_Row], schedule: NoiseSchedule, snr_gamma: float | None
) -> SameShapeRows:
    mean = torch.stack([row.latents.mean[row.variant] for row in rows])
    deviation = torch.stack([row.latents.deviation[row.variant] for row in rows])
    noise = torch.stack([row.noise for row in rows]).to(mean)
    timesteps = torch.stack([row.timestep for row in rows]).to(mean.device)
    latents = mean + deviation * torch.stack([row.posterior_noise for row in rows]).to(mean)
    weights = None if snr_gamma is None else schedule.min_snr_weights(timesteps, snr_gamma)
    return SameShapeRows(
        rows=tuple(numbers),
        noisy=schedule.add_noise(latents, noise, timesteps),
        target=schedule.target(latents, noise, timesteps),
        timesteps=timesteps,
        sizes=torch.stack([row.latents.sizes[row.variant] for row in rows]),
        weights=weights,
        focus=_focus(rows, mean[:, :1]),
    )


def _focus(rows: Sequence[_Row], like: Tensor) -> Float[Tensor, "rows 1 height width"] | None:
    """The rows' masks as weights; ones for a row without a mask beside one that has one."""
    masks = [None if row.latents.focus is None else row.latents.focus[row.variant] for row in rows]
    if all(mask is None for mask in masks):
        return None
    return torch.stack([like.new_ones(like.shape[1:]) if mask is None else mask for mask in masks])
