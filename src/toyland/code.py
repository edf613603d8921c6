"""A linear code of picture patches: the latents that the autoencoder is taught to write and read.

Principal components of 4 x 4 patches need no training, so the diffusion model can be trained from the first minute on
while the autoencoder learns the same latents (its encoder by regression, its decoder from the latents to the picture).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PATCH = 4
"""Side of a patch in pixels; latents are smaller than the picture by this factor."""
CHANNELS = 16


@dataclass(frozen=True)
class PatchCode:
    """Latents = (patch - mean) @ basis, with `basis` of shape (48, 16) scaled to unit mean variance.

    Components are scaled by the square root of their deviation (half-way to whitening), so that coarse structure keeps
    a higher signal-to-noise ratio than fine detail at every timestep.
    """

    mean: Tensor
    basis: Tensor
    inverse: Tensor

    @classmethod
    def fit(cls, pictures: np.ndarray) -> PatchCode:
        """Principal components of uint8 pictures of shape (count, height, width, 3)."""
        patches = _patches(torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).double() / 127.5 - 1)
        flat = patches.permute(0, 2, 3, 1).reshape(-1, patches.shape[1])
        mean = flat.mean(0)
        variance, vectors = torch.linalg.eigh(torch.cov((flat - mean).T))
        deviation = variance.flip(0)[:CHANNELS].sqrt()
        directions = vectors.flip(1)[:, :CHANNELS]
        scale = deviation.sqrt() / deviation.mean().sqrt()
        directions = directions * torch.sign(directions.sum(0, keepdim=True))
        gain = (deviation / scale).square().mean().sqrt()  # mean variance of the latents becomes 1
        basis = (directions / (scale * gain)).contiguous()
        return cls(mean.float(), basis.float(), (directions * (scale * gain)).T.contiguous().float())

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (rows, 3, height, width) in -1..1 to latents (rows, 16, height / 4, width / 4)."""
        return torch.einsum("nphw,pc->nchw", _patches(pixels) - self.mean[:, None, None], self.basis)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pixels by the transposed linear map: the floor that the autoencoder's decoder improves on."""
        patches = torch.einsum("nchw,cp->nphw", latents, self.inverse) + self.mean[:, None, None]
        return torch.nn.functional.pixel_shuffle(patches, PATCH)

    def to(self, device: torch.device) -> PatchCode:
        """The same code on a device."""
        return PatchCode(self.mean.to(device), self.basis.to(device), self.inverse.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a file needs to hold: `PatchCode(**tensors)` is this code."""
        return {"mean": self.mean, "basis": self.basis, "inverse": self.inverse}


def _patches(pixels: Tensor) -> Tensor:
    return torch.nn.functional.pixel_unshuffle(pixels, PATCH)
