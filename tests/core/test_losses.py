"""Denoising losses and the noise schedule, compared with diffusers and with plain formulas."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from tara.core.losses import NoiseSchedule, PredictionType, denoising_loss


def test_noise_and_v_are_diffusers_own() -> None:
    torch.manual_seed(0)
    scheduler = DDPMScheduler()
    epsilon, v, sample = (
        NoiseSchedule(scheduler.alphas_cumprod, kind) for kind in ("epsilon", "v_prediction", "sample")
    )
    latents, noise, timesteps = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 500, 999])
    noisy = epsilon.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, timesteps))
    torch.testing.assert_close(v.target(latents, noise, timesteps), scheduler.get_velocity(latents, noise, timesteps))
    assert epsilon.target(latents, noise, timesteps) is noise
    assert sample.target(latents, noise, timesteps) is latents


def test_each_row_has_its_own_loss_and_weight() -> None:
    predicted = torch.tensor([[1.0, 3.0], [0.0, 2.0]])
    loss = denoising_loss(predicted, torch.zeros(2, 2), torch.tensor([1.0, 0.5]))
    assert loss.tolist() == [5.0, 1.0]


def test_min_snr_weighs_the_same_latent_error_whatever_is_predicted() -> None:
    ratio, gamma = torch.tensor([0.01, 1.0, 5.0, 80.0], dtype=torch.float64), 5.0
    timesteps = torch.arange(len(ratio))

    def weights(kind: PredictionType) -> torch.Tensor:
        return NoiseSchedule(ratio / (ratio + 1), kind).min_snr_weights(timesteps, gamma)

    torch.testing.assert_close(NoiseSchedule(ratio / (ratio + 1), "epsilon").snr(timesteps), ratio)
    # an error e in x is an error sqrt(snr) e in the noise, and sqrt(snr + 1) e in v
    torch.testing.assert_close(weights("epsilon") * ratio, weights("sample"))
    torch.testing.assert_close(weights("v_prediction") * (ratio + 1), weights("sample"))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_weights_stay_finite_where_only_noise_is_left(kind: PredictionType) -> None:
    schedule = NoiseSchedule(DDIMScheduler(rescale_betas_zero_snr=True).alphas_cumprod, kind)
    assert torch.isfinite(schedule.min_snr_weights(torch.tensor([999]), 5.0)).all()
