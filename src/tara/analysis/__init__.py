"""Attention maps of the words of a prompt, and comparison of composers."""
