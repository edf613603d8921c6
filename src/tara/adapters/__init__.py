"""The adapter file: its low-rank layers, its card, and everybody's formats. Knows no loaded base."""
