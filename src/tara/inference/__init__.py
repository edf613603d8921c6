"""From prompt and adapters to images: request, binding, text keys and values, composers. Does not import training."""
