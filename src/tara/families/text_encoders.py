"""The text encoders of a diffusers pipeline from inside: their layers and what they read for a token."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tara.families.family import TEXT_ENCODERS


def text_layer(pipe: Any, path: str) -> Any:
    """The layer at ``text_encoder.text_model...`` or ``text_encoder_2.text_model...``.

    Raises:
        AttributeError: when there is none.
    """
    model, _, inner = path.partition(".")
    encoder: Any = getattr(pipe, model)
    # CLIPTextModel of transformers 5 has no such part of its paths any more
    return encoder.get_submodule(inner if hasattr(encoder, "text_model") else inner.removeprefix("text_model."))


def text_widths(pipe: Any) -> dict[str, int]:
    """The width of each text encoder's token embeddings."""
    encoders = {model: getattr(pipe, model, None) for model in TEXT_ENCODERS}
    return {
        model: int(encoder.get_input_embeddings().weight.shape[1])
        for model, encoder in encoders.items()
        if encoder is not None
    }


@contextmanager
def embedded(pipe: Any, vectors: Mapping[str, Tensor], positions: Sequence[int]) -> Generator[None]:
    """For a ``with`` block, text encoders that read other vectors for the tokens at some positions.

    Args:
        pipe: the pipeline.
        vectors: (n, d) by text encoder.
        positions: n places in every text that is encoded inside.
    """
    index = torch.tensor(list(positions))

    def reading(own: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        return lambda _module, _given, out: out.index_copy(
            1, index.to(out.device), own.to(out).expand(len(out), -1, -1)
        )

    hooks = [
        getattr(pipe, model).get_input_embeddings().register_forward_hook(reading(own))
        for model, own in vectors.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
