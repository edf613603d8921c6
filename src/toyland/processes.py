"""Several processes that train one model together, as `torchrun --nproc-per-node N -m toyland.train denoiser` starts
them: on a CPU two processes with a thread each train faster than one with two.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn


def join() -> None:
    """Meet the other processes, if torchrun started any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def is_first() -> bool:
    """Whether this is the process that writes files and prints; always so for a single one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def own_rows() -> slice:
    """This process's rows of a batch; all of them for a single one."""
    return slice(dist.get_rank(), None, dist.get_world_size()) if dist.is_initialized() else slice(None)


def share_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the mean of all processes' gradients, in place; nothing to do for a single one."""
    if not dist.is_initialized():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(together)
    together /= dist.get_world_size()
    for gradient, part in zip(gradients, together.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view(gradient.shape))
