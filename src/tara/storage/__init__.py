"""Files, photo folders, images, locks and the model hub. Nothing here depends on diffusion."""
