"""From photos to adapters: settings, checked inputs, batches, the loop. `training.run` writes the files of a run."""
