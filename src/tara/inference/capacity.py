"""What fits into memory: the rows of one network call, and a cache of bounded size."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableMapping
from typing import TypeVar

import psutil
import torch

from tara.families.base import Base

Key = TypeVar("Key")
Value = TypeVar("Value")

MEMORY_SHARE = 0.6  # fraction of the free memory; the rest is for decoding images and for other programs
LIVE_OUTPUTS = 6  # measured: as many of the largest outputs are in memory at once in a gated feed-forward layer
MOST_ROWS = {"cpu": 8}  # more do not make a CPU faster
MOST_ROWS_ELSEWHERE = 64


class ByteBoundedCache(MutableMapping[Key, Value]):
    """A mapping of bounded size in bytes. Drops the least recently used entries, but never the newest one."""

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
    """Number of rows at the base's own resolution that one network call can have in the free memory; at least 1."""
    free = torch.cuda.mem_get_info(base.device)[0] if base.device.type == "cuda" else psutil.virtual_memory().available
    most = MOST_ROWS.get(base.device.type, MOST_ROWS_ELSEWHERE)
    return max(1, min(most, int(MEMORY_SHARE * free / bytes_per_row(base))))


def bytes_per_row(base: Base) -> int:
    """Estimated memory in bytes of one row of a network call, from the sizes of the modules' outputs for one row.

    It is the sum of the skip connections, which a U-Net stores until its up blocks use them, plus `LIVE_OUTPUTS` times
    the largest output.
    """
    widest, skips = 0, 0

    def record(module: torch.nn.Module, _inputs: object, output: object) -> None:
        nonlocal widest, skips
        if isinstance(output, torch.Tensor):
            widest = max(widest, output.nbytes)
        elif isinstance(output, tuple):  # a down block returns its output and its skip connections
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
