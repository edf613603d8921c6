"""Everybody's LoRA files, both ways: keys to layers and layers to keys."""
