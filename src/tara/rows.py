"""The pictures of one training call of the U-Net: concept by concept, ``[photos..., class pictures...]`` in each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tara.cache import Caption, Latents
from tara.concepts import Material
from tara.draws import Draw, draw
from tara.losses import PredictionType, add_noise, min_snr_weights, snr, target_for


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseSchedule:
    """What the base was trained to undo."""

    alphas_cumprod: Float[Tensor, " timesteps"]
    prediction_type: PredictionType
    snr_gamma: float | None
    """Gamma of the min-SNR weights; None weighs all timesteps alike."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureRows:
    """The picture side of a call."""

    noisy: Float[Tensor, "rows channels height width"]
    target: Float[Tensor, "rows channels height width"]
    timesteps: Int[Tensor, " rows"]
    sizes: Int[Tensor, "rows 6"]
    weights: Float[Tensor, " rows"] | None
    captions: tuple[Caption, ...]


def picture_rows(
    materials: Sequence[Material], schedule: NoiseSchedule, *, seed: int, call: int, batch_size: int
) -> PictureRows:
    """Choose and noise the pictures of a call; each concept's rows are a function of (seed, concept, call) alone."""
    captions: list[Caption] = []
    chosen: list[tuple[Latents, Draw]] = []
    count = schedule.alphas_cumprod.shape[0]
    for material in materials:
        drawn = _draw(material.latents, seed, material.key, call, batch_size, count)
        chosen.append((material.latents, drawn))
        for photo, chance in zip(drawn.photos, drawn.captions, strict=True):
            own = material.captions[photo]
            captions.append(own[int(chance * len(own))])
        if material.prior is not None:
            latents = material.prior.latents
            chosen.append((latents, _draw(latents, seed, material.key + "\nclass", call, batch_size, count)))
            captions += [material.prior.caption] * batch_size
    return _noised(chosen, schedule, tuple(captions))


def _draw(latents: Latents, seed: int, key: str, call: int, rows: int, timesteps: int) -> Draw:
    return draw(
        seed,
        key,
        call,
        rows=rows,
        photos=latents.photos,
        variants=latents.variants,
        timesteps=timesteps,
        shape=latents.shape,
    )


def _noised(
    chosen: Sequence[tuple[Latents, Draw]], schedule: NoiseSchedule, captions: tuple[Caption, ...]
) -> PictureRows:
    alphas, prediction_type = schedule.alphas_cumprod, schedule.prediction_type
    like = chosen[0][0].mean
    means, deviations, sizes = (
        torch.cat([getattr(cached, part)[list(drawn.photos), list(drawn.variants)] for cached, drawn in chosen])
        for part in ("mean", "deviation", "sizes")
    )
    posterior = torch.cat([drawn.posterior_noise for _, drawn in chosen]).to(like)
    noise = torch.cat([drawn.noise for _, drawn in chosen]).to(like)
    timesteps = torch.cat([drawn.timesteps for _, drawn in chosen]).to(like.device)
    latents = means + deviations * posterior
    weights = None
    if schedule.snr_gamma is not None:
        weights = min_snr_weights(snr(alphas, timesteps), schedule.snr_gamma, prediction_type)
    return PictureRows(
        noisy=add_noise(latents, noise, alphas, timesteps),
        target=target_for(prediction_type, latents, noise, alphas, timesteps),
        timesteps=timesteps,
        sizes=sizes,
        weights=weights,
        captions=captions,
    )
