"""Records attention maps during generation, as running means; the images do not change."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tara.core.attention_maps import RunningMean, map_size, resized, word_maps
from tara.families.base import Base
from tara.families.processors import CONDITIONING_KEY


@dataclass(frozen=True, eq=False)
class WordMaps:
    """Attention maps of the words of one image, as probabilities.

    Attributes:
        layers: by cross-attention, at its own resolution (words, height, width): mean over heads and network calls.
        steps: one per network call, at the latents' resolution: mean over heads and layers.
        timesteps: one per network call.
    """

    layers: Mapping[str, Float[Tensor, "words _height _width"]]
    steps: Float[Tensor, "calls words height width"]
    timesteps: tuple[int, ...]

    @property
    def mean(self) -> Float[Tensor, "words height width"]:
        """Over heads, layers and network calls."""
        return self.steps.mean(0)


class Recorder:
    """Running means of the attention to words: one sum per layer and one per network call.

    Args:
        words: the positions of each word's tokens in the prompt.
        images: how many are generated at a time, all with that prompt.
    """

    def __init__(self, words: Sequence[Sequence[int]], images: int = 1) -> None:
        self._words, self._images = words, images
        self._latents = (0, 0)
        self._layers: dict[str, RunningMean] = {}
        self._steps: list[RunningMean] = []
        self._timesteps: list[int] = []

    def begin_call(self, _denoiser: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A forward pre-hook of the denoiser: notes the latents' size and the timestep."""
        names = enumerate(("sample", "timestep"))
        latents, timestep = (args[i] if len(args) > i else kwargs[name] for i, name in names)
        self._latents = (int(latents.shape[-2]), int(latents.shape[-1]))
        self._timesteps.append(int(torch.as_tensor(timestep).flatten()[0]))
        self._steps.append(RunningMean())

    @torch.no_grad()
    def __call__(self, layer: str, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        """Add the attention of one cross-attention layer in one network call; see `tara.families.processors.Watch`."""
        # rows = [unconditional..., conditional...] with guidance, [conditional...] without: only these read the prompt
        assert query.shape[0] in (self._images, 2 * self._images), "one row, or a guided pair, for each image"
        conditional = slice(query.shape[0] - self._images, None)
        masked = None if mask is None else mask[conditional]
        flat = word_maps(query[conditional], key[conditional], self._words, masked)
        maps = flat.unflatten(-1, map_size(flat.shape[-1], self._latents))
        self._layers.setdefault(layer, RunningMean()).add(maps)
        self._steps[-1].add(resized(maps, self._latents))

    def maps(self) -> list[WordMaps]:
        """The maps of each image."""
        layers = {layer: mean.mean.cpu() for layer, mean in self._layers.items()}
        steps = torch.stack([step.mean.cpu() for step in self._steps])
        return [
            WordMaps({layer: maps[row] for layer, maps in layers.items()}, steps[:, row], tuple(self._timesteps))
            for row in range(self._images)
        ]


@contextmanager
def recording(base: Base, recorder: Recorder) -> Generator[None]:
    """Record the attention of a base's denoiser to prepared text, in a ``with`` block."""

    def watch(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        recorder.begin_call(denoiser, args, kwargs)
        given = kwargs["cross_attention_kwargs"]
        watched = replace(given[CONDITIONING_KEY], watch=recorder)
        return args, {**kwargs, "cross_attention_kwargs": {**given, CONDITIONING_KEY: watched}}

    hook = base.denoiser.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
