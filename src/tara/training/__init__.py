"""From photos to adapters: settings, batches, the loop. `training.run` writes files, `training.data` reads photos."""
