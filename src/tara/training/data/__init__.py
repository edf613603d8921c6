"""From a folder of photos to training data: captions, crops, masks, encoded latents and texts."""
