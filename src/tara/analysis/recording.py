"""Where words attend while pictures are drawn: running means that are taken without touching a picture."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tara.core.attention_maps import RunningMean, map_size, resized, word_maps
from tara.families.processors import watched


@dataclass(frozen=True, eq=False)
class WordMaps:
    """Where the words of one picture attend, as probabilities.

    Attributes:
        layers: by cross-attention, at its own resolution (words, height, width): mean over heads and U-Net calls.
        steps: one per U-Net call, at the latents' resolution: mean over heads and layers.
        timesteps: one per U-Net call.
    """

    layers: Mapping[str, Float[Tensor, "words _height _width"]]
    steps: Float[Tensor, "calls words height width"]
    timesteps: tuple[int, ...]

    @property
    def mean(self) -> Float[Tensor, "words height width"]:
        """Over heads, layers and U-Net calls."""
        return self.steps.mean(0)


class Recorder:
    """Running means of the attention that pictures pay to words.

    What is kept does not grow with heads, tokens or the product of layers and steps: one sum per layer, one per step.

    Args:
        words: the positions of each word's tokens in the prompt.
        pictures: how many are drawn at a time, all with that prompt.
    """

    def __init__(self, words: Sequence[Sequence[int]], pictures: int = 1) -> None:
        self._words, self._pictures = words, pictures
        self._latents = (0, 0)
        self._layers: dict[str, RunningMean] = {}
        self._steps: list[RunningMean] = []
        self._timesteps: list[int] = []

    def begin_call(self, _unet: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Before each U-Net call: its latents' size and its timestep."""
        latents, timestep = (
            args[i] if len(args) > i else kwargs[name] for i, name in enumerate(("sample", "timestep"))
        )
        self._latents = (int(latents.shape[-2]), int(latents.shape[-1]))
        self._timesteps.append(int(torch.as_tensor(timestep).flatten()[0]))
        self._steps.append(RunningMean())

    @torch.no_grad()
    def __call__(self, layer: str, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        """One cross-attention of one U-Net call, see `tara.families.processors.Watch`."""
        # rows = [unconditional..., conditional...] with guidance, [conditional...] without: only these read the prompt
        assert query.shape[0] in (self._pictures, 2 * self._pictures), "one row, or a guided pair, for each picture"
        conditional = slice(query.shape[0] - self._pictures, None)
        masked = None if mask is None else mask[conditional]
        flat = word_maps(query[conditional], key[conditional], self._words, masked)
        maps = flat.unflatten(-1, map_size(flat.shape[-1], self._latents))
        self._layers.setdefault(layer, RunningMean()).add(maps)
        self._steps[-1].add(resized(maps, self._latents))

    def maps(self) -> list[WordMaps]:
        """What was recorded, for each picture."""
        layers = {layer: mean.mean.cpu() for layer, mean in self._layers.items()}
        steps = torch.stack([step.mean.cpu() for step in self._steps])
        return [
            WordMaps({layer: maps[row] for layer, maps in layers.items()}, steps[:, row], tuple(self._timesteps))
            for row in range(self._pictures)
        ]


@contextmanager
def recording(unet: Any, recorder: Recorder) -> Generator[None]:
    """Let a recorder watch the U-Net for a ``with`` block; it is then given back as it was found.

    Raises:
        TaraError: when the U-Net has attention processors that are neither stock nor ours.
    """
    with watched(unet, recorder):
        hook = unet.register_forward_pre_hook(recorder.begin_call, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
