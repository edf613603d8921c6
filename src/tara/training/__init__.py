"""Photos to adapters: settings, data, batches, the loop. `training.run` writes files, `training.data` reads photos."""
