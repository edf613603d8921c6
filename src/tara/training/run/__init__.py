"""A training from photos to files: run folder, checkpoints, previews, trackers, Ctrl-C."""
