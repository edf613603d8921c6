"""Adapter files: low-rank layers, card, and the formats of other tools. Does not import bases."""
