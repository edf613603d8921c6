"""Several processes that train one model together, as `torchrun --nproc-per-node N -m toyland.train denoiser` starts
them. Each takes steps of its own, and now and then all go on from the mean of what they have (local SGD, Stich, 2019):
on a CPU this is faster than one process with several threads, and than sharing every step's gradients.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def join() -> None:
    """Meet the other processes, if torchrun started any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(dist.destroy_process_group)  # an interpreter that ends with it open may abort


def is_first() -> bool:
    """Whether this is the process that writes files and prints; always so for a single one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def number() -> int:
    """This process's number among all, from 0; each draws batches of its own."""
    return dist.get_rank() if dist.is_initialized() else 0


def average(tensors: Sequence[Tensor]) -> None:
    """Give every process the mean of all processes' tensors, in place; nothing to do for a single one."""
    if not dist.is_initialized():
        return
    together = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(together)
    together /= dist.get_world_size()
    for tensor, part in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))
