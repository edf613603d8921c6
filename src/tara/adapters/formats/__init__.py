"""Reads and writes the LoRA files of other tools: keys to layers, and layers to keys."""
