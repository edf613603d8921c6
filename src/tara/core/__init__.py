"""The mathematics: words in token sequences, low-rank deltas, losses, noise. Pure functions of tensors; knows no file, device or base."""
