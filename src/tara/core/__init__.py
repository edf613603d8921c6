"""The mathematics: words in token sequences, low-rank deltas, losses, noise.

Pure functions of tensors, without files, devices or bases.
"""
