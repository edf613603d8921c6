"""The denoising loss, and what a network of a diffusion family is trained to predict, as functions of tensors."""

from dataclasses import dataclass
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
    """Weights of the masked loss: 1 on the subject, ``background`` elsewhere, scaled to mean 1.

    The loss is then a weighted mean of the error, whose scale does not depend on how large the subject is. ``mask`` is
    the part of each place that the subject covers, 0..1.
    """
    weights = background + (1 - background) * mask
    # a crop that hardly shows the subject is not scaled up without bound
    return weights / weights.mean((1, 2, 3), keepdim=True).clamp(min=SMALLEST_MEAN_WEIGHT)


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The noise of a DDPM family (arXiv 2006.11239) and what its network predicts of it.

    Args:
        alphas_cumprod: ``abar``, one value per training timestep.
        prediction_type: the noise (epsilon), the latents (sample), or the velocity.
    """

    alphas_cumprod: Float[Tensor, " timesteps"]
    prediction_type: PredictionType

    @property
    def timesteps(self) -> int:
        """Number of training timesteps."""
        return self.alphas_cumprod.shape[0]

    def to(self, device: torch.device, dtype: torch.dtype) -> "NoiseSchedule":
        """The same schedule on a device and in a precision."""
        return NoiseSchedule(self.alphas_cumprod.to(device, dtype), self.prediction_type)

    def add_noise(
        self,
        latents: Float[Tensor, "rows *shape"],
        noise: Float[Tensor, "rows *shape"],
        timesteps: Int[Tensor, " rows"],
    ) -> Float[Tensor, "rows *shape"]:
        """``sqrt(abar_t) x + sqrt(1 - abar_t) noise`` (DDPM, eq. 4)."""
        signal = _per_row(self.alphas_cumprod[timesteps], latents)
        return signal.sqrt() * latents + (1 - signal).sqrt() * noise

    def target(
        self,
        latents: Float[Tensor, "rows *shape"],
        noise: Float[Tensor, "rows *shape"],
        timesteps: Int[Tensor, " rows"],
    ) -> Float[Tensor, "rows *shape"]:
        """What the network should predict: the noise, the latents, or ``v = sqrt(abar) noise - sqrt(1 - abar) x``.

        v is from Salimans and Ho, arXiv 2202.00512.
        """
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return latents
        signal = _per_row(self.alphas_cumprod[timesteps], latents)
        return signal.sqrt() * noise - (1 - signal).sqrt() * latents

    def snr(self, timesteps: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """Signal-to-noise ratio ``abar_t / (1 - abar_t)`` of each row."""
        signal = self.alphas_cumprod[timesteps]
        return signal / (1 - signal)

    def min_snr_weights(self, timesteps: Int[Tensor, " rows"], gamma: float) -> Float[Tensor, " rows"]:
        """Weights of Hang et al. (arXiv 2303.09556): ``min(snr, gamma)`` on the latents, in terms of the prediction."""
        ratio = self.snr(timesteps)
        clipped = ratio.clamp(max=gamma)
        if self.prediction_type == "sample":
            return clipped
        if self.prediction_type == "v_prediction":
            return clipped / (ratio + 1)
        # min(snr, gamma) / snr, with its limit 1 where nothing but noise is left
        return torch.where(ratio <= gamma, torch.ones_like(ratio), gamma / ratio.clamp(min=gamma))


def _per_row(values: Float[Tensor, " rows"], like: Float[Tensor, "rows *shape"]) -> Float[Tensor, "rows *ones"]:
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))
