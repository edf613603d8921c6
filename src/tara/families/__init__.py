"""Bases as loaded, and what differs between base families, one file each. Knows nothing of adapter files."""
