"""The denoising loss, its weights, and the noise schedule with its prediction target."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

SMALLEST_MEAN_WEIGHT = 0.01  # limits the weights to 100 in crops that contain almost none of the subject
PredictionType = Literal["epsilon", "v_prediction", "sample"]
Batch = Float[Tensor, "rows *shape"]


def denoising_loss(
    predicted: Batch,
    target: Batch,
    weights: Float[Tensor, " rows"] | None = None,
    pixel_weights: Float[Tensor, "rows *places"] | None = None,
) -> Float[Tensor, " rows"]:
    """Mean squared error of each row, times the row's weight (1 if ``weights`` is None).

    ``pixel_weights`` weight the positions of each row, with mean 1, and broadcast over the channels. None: all 1.
    """
    error = (predicted - target).square()
    loss = (error if pixel_weights is None else error * pixel_weights).flatten(1).mean(1)
    return loss if weights is None else loss * weights


def subject_weights(
    mask: Float[Tensor, "rows 1 height width"], background: float
) -> Float[Tensor, "rows 1 height width"]:
    """Weights of the masked loss: 1 on the subject, ``background`` elsewhere, scaled to mean 1.

    The loss's scale then does not depend on the subject's size. ``mask`` is the subject's coverage, 0 to 1.
    """
    weights = background + (1 - background) * mask
    return weights / weights.mean((1, 2, 3), keepdim=True).clamp(min=SMALLEST_MEAN_WEIGHT)


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The noise schedule of a DDPM (arXiv 2006.11239): ``abar`` of each training timestep, and the prediction type."""

    alphas_cumprod: Float[Tensor, " timesteps"]
    prediction_type: PredictionType

    @property
    def timesteps(self) -> int:
        """Number of training timesteps."""
        return self.alphas_cumprod.shape[0]

    def to(self, device: torch.device, dtype: torch.dtype) -> "NoiseSchedule":
        """The same schedule on another device and in another precision."""
        return NoiseSchedule(self.alphas_cumprod.to(device, dtype), self.prediction_type)

    def add_noise(self, latents: Batch, noise: Batch, timesteps: Int[Tensor, " rows"]) -> Batch:
        """``sqrt(abar_t) x + sqrt(1 - abar_t) noise`` (DDPM, eq. 4)."""
        signal = _per_row(self.alphas_cumprod[timesteps], latents)
        return signal.sqrt() * latents + (1 - signal).sqrt() * noise

    def target(self, latents: Batch, noise: Batch, timesteps: Int[Tensor, " rows"]) -> Batch:
        """What the network should predict: the noise (epsilon), the latents ``x`` (sample), or the velocity.

        ``v = sqrt(abar_t) noise - sqrt(1 - abar_t) x`` (Salimans and Ho, arXiv 2202.00512).
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
        """Min-SNR weights (Hang et al., arXiv 2303.09556) by prediction type.

        ``min(snr, gamma)`` for sample, divided by ``snr`` for epsilon and by ``snr + 1`` for v_prediction.
        """
        ratio = self.snr(timesteps)
        clipped = ratio.clamp(max=gamma)
        if self.prediction_type == "sample":
            return clipped
        if self.prediction_type == "v_prediction":
            return clipped / (ratio + 1)
        # min(snr, gamma) / snr, with its limit 1 at snr = 0
        return torch.where(ratio <= gamma, torch.ones_like(ratio), gamma / ratio.clamp(min=gamma))


def _per_row(values: Float[Tensor, " rows"], like: Batch) -> Float[Tensor, "rows *ones"]:
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))
