"""How much fits the memory: rows of one network call, and prepared prompts."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableMapping
from typing import TypeVar

import psutil
import torch

from tara.families.base import Base

Key = TypeVar("Key")
Value = TypeVar("Value")

MEMORY_SHARE = 0.6  # of the free memory: the rest is for decoding images and for other programs
LIVE_OUTPUTS = 6  # of the widest, measured: so many are alive at once in a gated feed-forward layer
MOST_ROWS = {"cpu": 8}  # more do not make a CPU faster
MOST_ROWS_ELSEWHERE = 64


class ByteBoundedCache(MutableMapping[Key, Value]):
    """A mapping of bounded size in bytes; the least recently used entries go first, the newest one stays always."""

    def __init__(self, most: int, size: Callable[[Value], int]) -> None:
        self._entries: OrderedDict[Key, tuple[int, Value]] = OrderedDict()
        self._most, self._size = most, size
        self.bytes = 0

    def __getitem__(self, key: Key) -> Value:
        self._entries.move_to_end(key)
        return self._entries[key][1]

    def __setitem__(self, key: Key, value: Value) -> None:
        self.pop(key, None)
        self._entries[key] = self._size(value), value
        self.bytes += self._entries[key][0]
        while self.bytes > self._most and len(self._entries) > 1:
            del self[next(iter(self._entries))]

    def __delitem__(self, key: Key) -> None:
        self.bytes -= self._entries.pop(key)[0]

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Key]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


@torch.no_grad()
def rows_that_fit(base: Base) -> int:
    """Rows of the base's own resolution that one network call can have in the free memory, at least 1."""
    free = torch.cuda.mem_get_info(base.device)[0] if base.device.type == "cuda" else psutil.virtual_memory().available
    most = MOST_ROWS.get(base.device.type, MOST_ROWS_ELSEWHERE)
    return max(1, min(most, int(MEMORY_SHARE * free / bytes_per_row(base))))


def bytes_per_row(base: Base) -> int:
    """Memory that one more row of a network call takes, from the outputs of the network's modules for one row.

    A U-Net keeps the outputs of its way down until they are used on the way up; beside them a few of the widest are
    alive at a time.
    """
    widest, skips = 0, 0

    def record(module: torch.nn.Module, _inputs: object, output: object) -> None:
        nonlocal widest, skips
        if isinstance(output, torch.Tensor):
            widest = max(widest, output.nbytes)
        elif isinstance(output, tuple):  # a block of the way down: its output, and what it keeps
            skips += sum(kept.nbytes for kept in output[-1] if isinstance(kept, torch.Tensor))

    hooks = [module.register_forward_hook(record) for module in base.denoiser.modules()]
    try:
        side = base.resolution // base.vae_scale
        latents = torch.zeros(
            (1, int(base.vae.config.latent_channels), side, side), dtype=base.dtype, device=base.device
        )
        base.predict(latents, torch.zeros(1, device=base.device), base.encode([""]))
    finally:
        for hook in hooks:
            hook.remove()
    return skips + LIVE_OUTPUTS * widest
