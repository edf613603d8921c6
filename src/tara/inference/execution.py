"""Execution of a base: compiled, with attention slicing, or with models offloaded to CPU memory."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

from tara.errors import TaraError, first_line
from tara.families.base import Base
from tara.families.settings import ExecutionSettings


def execute(base: Base, settings: ExecutionSettings, device: torch.device) -> None:
    """Make a base run so, from now on.

    Args:
        base: where it is does not matter to ``offload``, which moves its parts to ``device`` and back.
        settings: how.
        device: where it computes.

    Raises:
        TaraError: for ``offload`` without a GPU, and ``attention_slicing`` between ``prepare`` and ``release``.
    """
    if settings.offload and device.type == "cpu":
        raise TaraError(
            "offload moves models between GPU and CPU memory, but this base runs on the CPU. Leave offload out."
        )
    if settings.attention_slicing:
        if base.processors.installed:
            raise TaraError("attention_slicing must be set before tara.prepare. Call tara.release first.")
        base.denoiser.set_attention_slice("auto")
    if settings.compile:
        base.denoiser.compile()
    if settings.offload:
        offload(base.pipe, device)


def offload(pipe: Any, device: torch.device) -> None:
    """Let a pipeline's parts wait in the CPU's memory; each moves to the device for as long as it is at work."""
    pipe.enable_model_cpu_offload(device=device)


@contextmanager
def compiler_failures() -> Generator[None]:
    """What a compiler says no to, in one sentence."""
    try:
        yield
    except Exception as failure:
        # the compiler takes a second to import, and a failure of its own has done so already
        if not type(failure).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise TaraError(f"The network cannot be compiled here ({first_line(failure)}). Leave compile out.") from failure
