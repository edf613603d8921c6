"""A training run with its files: run folder, checkpoints, previews, trackers, Ctrl-C."""
