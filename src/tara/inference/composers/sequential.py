"""A U-Net call that is several evaluations, each with adapters of its own, and gives their mean."""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tara.families.processors import KEY, TextConditioning
from tara.inference.composers import Turn, Uses
from tara.inference.text_kv import fused, global_part


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one evaluation sees: keys and values, pooled text (rows, d) where the family has it, adapters' global parts.

    Rows are those of the U-Net's batch.
    """

    uses: Uses
    conditioning: TextConditioning
    pooled: Tensor | None


@contextmanager
def averaged(unet: Any, evaluations: Sequence[Evaluation], turn: Turn) -> Generator[None]:
    """For a ``with`` block, each call of the U-Net gives the mean over the evaluations whose turn it is.

    Of a call with prepared text each evaluation takes its own text and pooled vector; any other call is left alone.
    Weights are changed within an evaluation only; afterwards the U-Net's ``forward`` is the one that was found.
    """
    found = unet.__dict__.get("forward")  # accelerate's hooks, for instance, put one there
    unet.forward = _Averaged(unet, unet.forward, evaluations, turn)
    try:
        yield
    finally:
        del unet.forward
        if found is not None:
            unet.forward = found


@dataclass
class _Averaged:
    """Stands for the U-Net's ``forward`` and counts denoising steps."""

    unet: Any
    forward: Callable[..., Any]
    evaluations: Sequence[Evaluation]
    turn: Turn
    step: int = -1
    timestep: float = -math.inf

    def __call__(self, sample: Tensor, timestep: Tensor | float, *args: Any, **kwargs: Any) -> Any:
        if KEY not in (kwargs.get("cross_attention_kwargs") or {}):
            return self.forward(sample, timestep, *args, **kwargs)
        now = float(torch.as_tensor(timestep).max())
        # a picture's timesteps fall or stay: after a rise another picture has begun
        self.step = 0 if now > self.timestep else self.step + 1
        self.timestep = now
        chosen = [self.evaluations[index] for index in self.turn(self.step, len(self.evaluations))]
        predictions = [self._predict(evaluation, sample, timestep, *args, **kwargs) for evaluation in chosen]
        return (predictions[0] if len(predictions) == 1 else torch.stack(predictions).mean(0),)

    def _predict(self, evaluation: Evaluation, *args: Any, **kwargs: Any) -> Tensor:
        kwargs["cross_attention_kwargs"] = {**kwargs["cross_attention_kwargs"], KEY: evaluation.conditioning}
        if evaluation.pooled is not None:
            kwargs["added_cond_kwargs"] = {**kwargs["added_cond_kwargs"], "text_embeds": evaluation.pooled}
        with fused(self.unet, global_part(evaluation.uses)):
            return self.forward(*args, **{**kwargs, "return_dict": False})[0]
