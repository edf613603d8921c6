"""Whether a U-Net predicts noise or velocity, which its weights do not say but its answers do."""

from typing import Any

import torch

from tara.families.settings import Prediction

LARGEST_SIDE = 64  # of the latents that are tried: a picture of 512 pixels, which tells as much as a larger one
LIKE = 0.5


def observed_prediction(pipe: Any) -> Prediction:
    """What a pipeline's U-Net predicts, by its answer to pure noise at the last timestep.

    There almost all of a noisy picture is noise. A U-Net that predicts epsilon gives its input back; one that predicts
    ``v = sqrt(abar) noise - sqrt(1 - abar) x`` answers with the picture that it guesses, which looks nothing like it.
    """
    unet = pipe.unet
    side = min(LARGEST_SIDE, unet.config.sample_size)
    noise = torch.randn(1, unet.config.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    last = pipe.scheduler.config.num_train_timesteps - 1
    with torch.no_grad():
        text, _ = pipe.encode_prompt("", unet.device, 1, False)
        answer = unet(noise.to(unet.device, unet.dtype), last, encoder_hidden_states=text).sample
    likeness = torch.cosine_similarity(answer.cpu().float().flatten(), noise.flatten(), dim=0)
    return "epsilon" if float(likeness) > LIKE else "v_prediction"
