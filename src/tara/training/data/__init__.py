"""A folder of photos to what the loop reads: captions, crops, masks, encoded latents and texts."""
