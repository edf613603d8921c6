import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from tara.core.losses import add_noise, denoising_loss, min_snr_weights, snr, target_for, token_alignment_loss


@pytest.mark.parametrize("form", ["l1", "squared"])
def test_the_alignment_loss_is_its_formula_in_float64(form: str) -> None:
    generator = np.random.default_rng(0)
    widths, rank, scale, d_text = (8, 12), 3, 4.0, 6
    x_rare, x_class = generator.normal(size=(2, d_text)), generator.normal(size=(3, d_text))
    expected, rare_keys, class_keys = [], [], []
    for width in widths:
        w, a, b = (generator.normal(size=shape) for shape in ((width, d_text), (rank, d_text), (width, rank)))
        # the mean over a word's tokens of W x + s B A x, minus the mean over the class word's tokens of W x
        key = sum(w @ x + scale * b @ (a @ x) for x in x_rare) / 2
        kind = sum(w @ x for x in x_class) / 3
        difference = np.abs(key - kind) if form == "l1" else (key - kind) ** 2
        expected.append(difference.sum() / width)
        rare_keys.append(torch.tensor(x_rare @ w.T + scale * x_rare @ a.T @ b.T))
        class_keys.append(torch.tensor(x_class @ w.T))
    loss = token_alignment_loss(rare_keys, class_keys, form)  # type: ignore[arg-type]
    np.testing.assert_allclose(loss.item(), sum(expected) / len(expected), rtol=1e-12)


def test_noise_and_v_are_diffusers_own() -> None:
    torch.manual_seed(0)
    scheduler = DDPMScheduler()
    latents, noise, timesteps = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 500, 999])
    noisy = add_noise(latents, noise, scheduler.alphas_cumprod, timesteps)
    torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, timesteps))
    v = target_for("v_prediction", latents, noise, scheduler.alphas_cumprod, timesteps)
    torch.testing.assert_close(v, scheduler.get_velocity(latents, noise, timesteps))
    assert target_for("epsilon", latents, noise, scheduler.alphas_cumprod, timesteps) is noise
    assert target_for("sample", latents, noise, scheduler.alphas_cumprod, timesteps) is latents


def test_each_row_has_its_own_loss_and_weight() -> None:
    predicted = torch.tensor([[1.0, 3.0], [0.0, 2.0]])
    loss = denoising_loss(predicted, torch.zeros(2, 2), torch.tensor([1.0, 0.5]))
    assert loss.tolist() == [5.0, 1.0]


def test_min_snr_weighs_the_same_latent_error_whatever_is_predicted() -> None:
    ratio, gamma = torch.tensor([0.01, 1.0, 5.0, 80.0], dtype=torch.float64), 5.0
    on_latents = min_snr_weights(ratio, gamma, "sample")
    # an error e in x is an error sqrt(snr) e in the noise, and sqrt(snr + 1) e in v
    torch.testing.assert_close(min_snr_weights(ratio, gamma, "epsilon") * ratio, on_latents)
    torch.testing.assert_close(min_snr_weights(ratio, gamma, "v_prediction") * (ratio + 1), on_latents)


def test_weights_stay_finite_where_only_noise_is_left() -> None:
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True)
    last = snr(scheduler.alphas_cumprod, torch.tensor([999]))
    for kind in ("epsilon", "v_prediction", "sample"):
        assert torch.isfinite(min_snr_weights(last, 5.0, kind)).all()  # type: ignore[arg-type]
