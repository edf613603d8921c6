"""Loaded bases, and the differences between base families, one file each. Does not import adapters."""
