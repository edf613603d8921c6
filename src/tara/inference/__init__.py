"""Prompt and adapters to images: request, binding, text keys and values, composers. Knows nothing of training."""
