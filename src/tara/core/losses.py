"""The losses of training, as functions of tensors."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

SMALLEST_MEAN_WEIGHT = 0.01
PredictionType = Literal["epsilon", "v_prediction", "sample"]


def denoising_loss(
    predicted: Float[Tensor, "rows *shape"],
    target: Float[Tensor, "rows *shape"],
    weights: Float[Tensor, " rows"] | None = None,
    focus: Float[Tensor, "rows *places"] | None = None,
) -> Float[Tensor, " rows"]:
    """Mean squared error of each row, times the row's weight.

    ``focus`` weighs each place of each row; it broadcasts over the channels, and its mean is 1.
    """
    error = (predicted - target).square()
    loss = (error if focus is None else error * focus).flatten(1).mean(1)
    return loss if weights is None else loss * weights


def subject_weights(
    mask: Float[Tensor, "rows 1 height width"], background: float
) -> Float[Tensor, "rows 1 height width"]:
    """What each place weighs when the subject is to be learned: 1 on it, ``background`` elsewhere, scaled to mean 1.

    The loss is then a weighted mean of the error, whose scale does not depend on how large the subject is. ``mask`` is
    the part of each place that the subject covers, 0..1.
    """
    weights = background + (1 - background) * mask
    # a crop that hardly shows the subject is not blown up without end
    return weights / weights.mean((1, 2, 3), keepdim=True).clamp(min=SMALLEST_MEAN_WEIGHT)


def add_noise(
    latents: Float[Tensor, "rows *shape"],
    noise: Float[Tensor, "rows *shape"],
    alphas_cumprod: Float[Tensor, " steps"],
    timesteps: Int[Tensor, " rows"],
) -> Float[Tensor, "rows *shape"]:
    """``sqrt(abar_t) x + sqrt(1 - abar_t) noise`` (DDPM, arXiv 2006.11239, eq. 4)."""
    signal = _per_row(alphas_cumprod[timesteps], latents)
    return signal.sqrt() * latents + (1 - signal).sqrt() * noise


def target_for(
    prediction_type: PredictionType,
    latents: Float[Tensor, "rows *shape"],
    noise: Float[Tensor, "rows *shape"],
    alphas_cumprod: Float[Tensor, " steps"],
    timesteps: Int[Tensor, " rows"],
) -> Float[Tensor, "rows *shape"]:
    """What the U-Net should predict: the noise, the latents, or ``v = sqrt(abar) noise - sqrt(1 - abar) x``.

    v is from Salimans and Ho, arXiv 2202.00512.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    signal = _per_row(alphas_cumprod[timesteps], latents)
    return signal.sqrt() * noise - (1 - signal).sqrt() * latents


def snr(alphas_cumprod: Float[Tensor, " steps"], timesteps: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Signal-to-noise ratio ``abar_t / (1 - abar_t)`` of each row."""
    signal = alphas_cumprod[timesteps]
    return signal / (1 - signal)


def min_snr_weights(
    ratio: Float[Tensor, " rows"], gamma: float, prediction_type: PredictionType
) -> Float[Tensor, " rows"]:
    """Weights of Hang et al. (arXiv 2303.09556): ``min(snr, gamma)`` on the latents, in terms of what is predicted."""
    clipped = ratio.clamp(max=gamma)
    if prediction_type == "sample":
        return clipped
    if prediction_type == "v_prediction":
        return clipped / (ratio + 1)
    # min(snr, gamma) / snr, with its limit 1 where nothing but noise is left
    return torch.where(ratio <= gamma, torch.ones_like(ratio), gamma / ratio.clamp(min=gamma))


def token_alignment_loss(
    rare_keys: Sequence[Float[Tensor, "_rare_tokens _d"]],
    class_keys: Sequence[Float[Tensor, "_class_tokens _d"]],
    form: Literal["l1", "squared"] = "l1",
) -> Float[Tensor, ""]:
    """Distance between a rare word's keys with their delta and its class word's frozen keys (TARA, arXiv 2508.08812).

    Args:
        rare_keys: for each layer the keys of the rare word's tokens; widths may differ between layers.
        class_keys: for each layer the keys of the class word's tokens in the same prompt.
        form: mean absolute (published code) or mean squared (the paper's equation as others read it) difference.

    Returns:
        A scalar: the words' means over their tokens first, then the mean difference, then the mean over layers.
    """
    assert len(rare_keys) == len(class_keys) > 0, "one pair of keys per layer"
    distances: list[Tensor] = []
    for rare, kind in zip(rare_keys, class_keys, strict=True):
        difference = rare.mean(0) - kind.mean(0)
        distances.append(difference.abs().mean() if form == "l1" else difference.square().mean())
    return torch.stack(distances).mean()


def _per_row(values: Float[Tensor, " rows"], like: Float[Tensor, "rows *shape"]) -> Float[Tensor, "rows *ones"]:
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))
