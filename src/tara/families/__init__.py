"""A base as loaded, one file per family: where the text's keys and values are, how prompts become tokens, what the network predicts. Knows nothing of adapter files."""
