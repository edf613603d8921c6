"""Files, images, locks and the model hub. Knows nothing of diffusion."""
