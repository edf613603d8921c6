"""The mathematics: words in token sequences, low-rank deltas, the method, losses, noise, attention maps and regions.

Pure functions of tensors, without files, devices or bases.
"""
