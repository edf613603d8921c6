"""Embeddings that a LoRA file brings along (pivotal tuning), loaded into the pipeline by diffusers."""

from typing import Any

import torch

from tara.errors import TaraError
from tara.families.base import Base
from tara.inference.active_adapter import ActiveAdapter


def load_embeddings(base: Base, active: ActiveAdapter) -> None:
    """Give the pipeline's text encoders an adapter's own words; they stay until ``pipe.unload_textual_inversion()``.

    Raises:
        TaraError: when the base lacks an encoder, its width differs, or a word means something else there already.
    """
    for word, vectors in active.adapter.embeddings.items():
        for name, embedding in vectors.items():
            encoder = getattr(base.pipe, name, None)
            tokenizer: Any = getattr(base.pipe, name.replace("text_encoder", "tokenizer"), None)
            if encoder is None or encoder.get_input_embeddings().weight.shape[1] != embedding.shape[1]:
                raise TaraError(
                    f"{active.name} brings an embedding of '{word}' for '{name}', {embedding.shape[1]} wide, which "
                    "this base does not have. Use the base that it was trained on."
                )
            token = tokenizer.get_added_vocab().get(word)
            if token is None:
                base.pipe.load_textual_inversion(embedding, token=word, text_encoder=encoder, tokenizer=tokenizer)
            elif not torch.equal(encoder.get_input_embeddings().weight[token].cpu(), embedding[0].to(encoder.dtype)):
                raise TaraError(
                    f"{active.name} brings an embedding of '{word}', and the pipeline has another one of that word. "
                    "Call pipe.unload_textual_inversion() first."
                )
