"""The pictures of one training call of the U-Net: concept by concept, ``[photos..., class pictures...]`` in each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tara.core.losses import PredictionType, add_noise, min_snr_weights, snr, target_for
from tara.core.noise import Draw, draw
from tara.training.concepts import Material
from tara.training.data.encoded import Caption, Latents


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseSchedule:
    """What the base was trained to undo."""

    alphas_cumprod: Float[Tensor, " timesteps"]
    prediction_type: PredictionType
    snr_gamma: float | None
    """Gamma of the min-SNR weights; None weighs all timesteps alike."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AlikeRows:
    """The pictures of one shape: what one pass through the U-Net takes."""

    rows: tuple[int, ...]
    """Their numbers among all rows of the call."""
    noisy: Float[Tensor, "rows channels height width"]
    target: Float[Tensor, "rows channels height width"]
    timesteps: Int[Tensor, " rows"]
    sizes: Int[Tensor, "rows 6"]
    weights: Float[Tensor, " rows"] | None
    focus: Float[Tensor, "rows 1 height width"] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureRows:
    """The picture side of a call: every row's caption, and the pictures by shape (one shape without buckets)."""

    captions: tuple[Caption, ...]
    alike: tuple[AlikeRows, ...]

    def in_order(self, values: Sequence[Float[Tensor, " rows"]]) -> Float[Tensor, " rows"]:
        """One value for each row of each shape, as one value for each row of the call."""
        numbers = [row for part in self.alike for row in part.rows]
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


def picture_rows(
    materials: Sequence[Material], schedule: NoiseSchedule, *, seed: int, call: int, batch_size: int
) -> PictureRows:
    """Choose and noise the pictures of a call; each concept's rows are a function of (seed, concept, call) alone."""
    captions: list[Caption] = []
    rows: list[_Row] = []
    timesteps = schedule.alphas_cumprod.shape[0]
    for material in materials:
        drawn = _draw(material.latents, seed, material.key, call, batch_size, timesteps)
        rows += _chosen(material.latents, drawn)
        for photo, chance in zip(drawn.photos, drawn.captions, strict=True):
            own = material.captions[photo]
            captions.append(own[int(chance * len(own))])
        if material.prior is not None:
            latents = material.prior.latents
            rows += _chosen(latents, _draw(latents, seed, material.key + "\nclass", call, batch_size, timesteps))
            captions += [material.prior.caption] * batch_size
    shapes = [row.latents.shape for row in rows]
    alike = [[number for number, own in enumerate(shapes) if own == shape] for shape in dict.fromkeys(shapes)]
    return PictureRows(
        captions=tuple(captions),
        alike=tuple(_noised(numbers, [rows[number] for number in numbers], schedule) for numbers in alike),
    )


def _draw(latents: Sequence[Latents], seed: int, key: str, call: int, rows: int, timesteps: int) -> Draw:
    shapes = [photo.shape for photo in latents]
    return draw(seed, key, call, rows=rows, shapes=shapes, variants=latents[0].variants, timesteps=timesteps)


def _chosen(latents: Sequence[Latents], drawn: Draw) -> list[_Row]:
    photos = [latents[photo] for photo in drawn.photos]
    parts = photos, drawn.variants, drawn.timesteps, drawn.posterior_noise, drawn.noise
    return [_Row(*row) for row in zip(*parts, strict=True)]


def _noised(numbers: Sequence[int], rows: Sequence[_Row], schedule: NoiseSchedule) -> AlikeRows:
    alphas, prediction_type = schedule.alphas_cumprod, schedule.prediction_type
    mean = torch.stack([row.latents.mean[row.variant] for row in rows])
    deviation = torch.stack([row.latents.deviation[row.variant] for row in rows])
    noise = torch.stack([row.noise for row in rows]).to(mean)
    timesteps = torch.stack([row.timestep for row in rows]).to(mean.device)
    latents = mean + deviation * torch.stack([row.posterior_noise for row in rows]).to(mean)
    weights = None
    if schedule.snr_gamma is not None:
        weights = min_snr_weights(snr(alphas, timesteps), schedule.snr_gamma, prediction_type)
    return AlikeRows(
        rows=tuple(numbers),
        noisy=add_noise(latents, noise, alphas, timesteps),
        target=target_for(prediction_type, latents, noise, alphas, timesteps),
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
