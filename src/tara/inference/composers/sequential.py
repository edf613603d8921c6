"""Composers that evaluate the network with one adapter at a time: in turn, or all of them with the mean prediction.

- LoRA Switch (Zhong et al., Multi-LoRA Composition, TMLR 2024, arXiv 2402.16843): number ``floor(i / every) mod k`` of
  k adapters, in the order given, acts at denoising step i. The authors switch every 5 of their 100 or 200 steps; with
  the usual 20 to 50 steps, switching at every step is closest to that.
- LoRA Composite (the same paper): ``e = 1/k sum_i [e_i(z, no text) + g (e_i(z, text) - e_i(z, no text))]`` at every
  step. Guidance is linear in the predictions, so the pipeline guides their mean, which is the same.

Composers with one evaluation per step are not affected: the denoiser's ``forward`` is replaced inside `evaluated`
only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tara.inference.composers.composer import Composer, Turns

if TYPE_CHECKING:
    from torch import Tensor

    from tara.families.base import Base
    from tara.inference.active_adapter import ActiveAdapters
    from tara.inference.batch import EvaluationInputs


def switch_every(steps: int) -> Composer:
    """LoRA Switch that changes to the next LoRA every ``steps`` denoising steps."""

    def turns(step: int, adapters: int) -> Sequence[int]:
        return (step // steps % adapters,)

    return Composer(description=f"one LoRA at a time, the next after {steps} steps", turns=turns)


def _sorted(adapters: ActiveAdapters) -> ActiveAdapters:
    # a fixed order of summation, so that the order of the adapters does not change any bit
    return tuple(sorted(adapters, key=lambda active: active.order))


SWITCH = replace(switch_every(1), description="one LoRA per step, in turn")
COMPOSITE = Composer(
    description="mean of the LoRAs' separate predictions",
    adapters=_sorted,
    turns=lambda step, adapters: range(adapters),
)


@contextmanager
def evaluated(base: Base, evaluations: Sequence[EvaluationInputs], turns: Turns) -> Generator[None]:
    """In a ``with`` block, each network call returns the mean prediction of the evaluations that ``turns`` selects.

    Each evaluation uses its own text and pooled vector. Network calls without prepared text are not changed. Weights
    are changed only during an evaluation. At the end of the block, the denoiser's ``forward`` is restored.
    """
    denoiser = base.denoiser
    original = denoiser.__dict__.get("forward")  # accelerate's hooks, for instance, put one there
    denoiser.forward = _MeanForward(base, denoiser.forward, evaluations, turns)
    try:
        yield
    finally:
        del denoiser.forward
        if original is not None:
            denoiser.forward = original


@dataclass
class _MeanForward:
    """Replacement of the denoiser's ``forward``, which counts denoising steps."""

    base: Base
    forward: Callable[..., Any]
    evaluations: Sequence[EvaluationInputs]
    turns: Turns
    step: int = -1
    timestep: float = -math.inf

    def __call__(self, sample: Tensor, timestep: Tensor | float, *args: Any, **kwargs: Any) -> Any:
        import torch

        from tara.families.processors import CONDITIONING_KEY

        if CONDITIONING_KEY not in (kwargs.get("cross_attention_kwargs") or {}):
            return self.forward(sample, timestep, *args, **kwargs)
        now = float(torch.as_tensor(timestep).max())
        # timesteps of an image never rise, so a higher one means that a new image has begun
        self.step = 0 if now > self.timestep else self.step + 1
        self.timestep = now
        chosen = [self.evaluations[index] for index in self.turns(self.step, len(self.evaluations))]
        predictions = [self._predict(evaluation, sample, timestep, *args, **kwargs) for evaluation in chosen]
        return (predictions[0] if len(predictions) == 1 else torch.stack(predictions).mean(0),)

    def _predict(self, evaluation: EvaluationInputs, *args: Any, **kwargs: Any) -> Tensor:
        from tara.families.processors import CONDITIONING_KEY
        from tara.inference.fusing import fused, global_part

        given = kwargs["cross_attention_kwargs"]
        conditioning = replace(evaluation.conditioning, watch=given[CONDITIONING_KEY].watch)
        kwargs["cross_attention_kwargs"] = {**given, CONDITIONING_KEY: conditioning}
        if (pooled := evaluation.encoding.pooled) is not None:
            kwargs["added_cond_kwargs"] = {**kwargs["added_cond_kwargs"], "text_embeds": pooled}
        with fused(self.base, global_part(evaluation.adapters)):
            return self.forward(*args, **{**kwargs, "return_dict": False})[0]
