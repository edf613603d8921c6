"""Prompt and adapters to images: settings, binding, text keys and values, composers, the pipeline. Knows nothing of training."""
