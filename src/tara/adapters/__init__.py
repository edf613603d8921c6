"""Adapter files: low-rank layers, card, and the formats of other tools. Needs no loaded base."""
