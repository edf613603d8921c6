"""Photos to adapters: settings, data, the batch, the loop. `training.run` writes files, `training.data` reads photos."""
