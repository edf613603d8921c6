"""One optimizer per concept, each with its own schedule, clipping, loss scale and skipped steps."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from jaxtyping import Float
from torch import Tensor

from tara.errors import TaraError, installation
from tara.training.settings import OptimizerName, ScheduleName

# the package that an optimizer needs, and the extra that installs it
PACKAGES = {"adamw8bit": ("bitsandbytes", "8bit"), "prodigy": ("prodigyopt", "prodigy")}
LOSS_SCALE, GROWTH_STEPS = 2.0**16, 2000  # as torch.amp.GradScaler


class ConceptOptimizers:
    """Independent optimizers for the rows of one (concepts, size) leaf tensor.

    ``loss_scales`` are the factors of the concepts' losses before the backward pass: small fp16 gradients survive when
    they are enlarged. A concept's factor halves when its gradients overflow.
    """

    def __init__(
        self,
        weights: Float[Tensor, "concepts size"],
        *,
        name: OptimizerName,
        weight_decay: float,
        max_grad_norm: float,
        loss_scaling: bool,
    ) -> None:
        self._weights, self._max_grad_norm, self._scaling = weights, max_grad_norm, loss_scaling
        # one parameter per concept; it shares memory with its row of the leaf, so its update is the row's update
        self._rows = [torch.nn.Parameter(row) for row in weights.detach()]
        self._optimizers = [_optimizer(name, row, weight_decay) for row in self._rows]
        self.loss_scales = [LOSS_SCALE if loss_scaling else 1.0] * len(self._rows)
        self._good_steps = [0] * len(self._rows)

    def gradient_norms(self) -> Float[Tensor, " concepts"]:
        """Divide the gradient by the loss scales, in place.

        Returns each concept's gradient norm, on the same device.
        """
        gradient = self._weights.grad
        assert gradient is not None, "a backward pass comes first"
        if self._scaling:
            gradient /= gradient.new_tensor(self.loss_scales)[:, None]
        return gradient.norm(dim=1)

    def step(self, learning_rate: float, norms: Sequence[float]) -> None:
        """Clip and apply each concept's gradient; skip it if its norm (from `gradient_norms`) is not finite."""
        gradient = self._weights.grad
        assert gradient is not None, "a backward pass comes first"
        for index, norm in enumerate(norms):
            if math.isfinite(norm):
                self._apply(index, gradient[index], norm, learning_rate)
            if self._scaling:
                self._rescale(index, math.isfinite(norm))
        self._weights.grad = None

    def _rescale(self, index: int, finite: bool) -> None:
        self._good_steps[index] = self._good_steps[index] + 1 if finite else 0
        if not finite:
            self.loss_scales[index] /= 2
        elif self._good_steps[index] == GROWTH_STEPS:
            self.loss_scales[index] *= 2
            self._good_steps[index] = 0

    def _apply(self, index: int, gradient: Tensor, norm: float, learning_rate: float) -> None:
        if 0 < self._max_grad_norm < norm:
            gradient *= self._max_grad_norm / (norm + 1e-6)  # as torch.nn.utils.clip_grad_norm_
        row, optimizer = self._rows[index], self._optimizers[index]
        row.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        row.grad = None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state for resuming: tensors by name, and the rest as JSON values."""
        tensors: dict[str, Tensor] = {}
        concepts: list[dict[str, Any]] = []
        for index, optimizer in enumerate(self._optimizers):
            whole = optimizer.state_dict()
            state: dict[str, Any] = whole["state"].get(0, {})
            group: dict[str, Any] = {
                name: value.item() if isinstance(value, Tensor) else value
                for name, value in whole["param_groups"][0].items()
            }
            moments = {name: value for name, value in state.items() if isinstance(value, Tensor)}
            tensors |= {f"{index}.{name}": value.detach().cpu().contiguous() for name, value in moments.items()}
            concepts.append({"state": {name: state[name] for name in state.keys() - moments}, "group": group})
        scales = list(zip(self.loss_scales, self._good_steps, strict=True))
        return tensors, {"loss_scales": scales, "concepts": concepts}

    def load(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Restore a state returned by `state`."""
        for index, (optimizer, saved) in enumerate(zip(self._optimizers, plain["concepts"], strict=True)):
            moments = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{index}.")}
            state, group = saved["state"] | moments, saved["group"] | {"params": [0]}
            optimizer.load_state_dict({"state": {0: state} if state else {}, "param_groups": [group]})
        self.loss_scales, self._good_steps = map(list, zip(*plain["loss_scales"], strict=True))


def learning_rate_schedule(name: ScheduleName, *, peak: float, warmup: int, steps: int) -> Callable[[int], float]:
    """The learning rate as a function of the step (from 0), by diffusers' schedule of that name."""
    if name == "constant" and warmup:
        name = "constant_with_warmup"  # diffusers' constant schedule silently ignores the warm-up
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=peak)
    schedule = get_scheduler(name, stand_in, num_warmup_steps=warmup, num_training_steps=steps)
    # diffusers' polynomial schedule reads the peak from the optimizer; every schedule returns a factor of the peak
    return lambda step: peak * float(schedule.lr_lambdas[0](step))


def check_optimizer(name: OptimizerName) -> None:
    """Raises TaraError if the optimizer's package is not installed or cannot be imported."""
    if name not in PACKAGES:
        return
    package, extra = PACKAGES[name]
    try:
        import_module(package)
    except ImportError as missing:
        raise TaraError(
            f"The optimizer '{name}' needs the package {package}. Install it with `{installation(extra)}`, "
            "or choose adamw."
        ) from missing


def _optimizer(name: OptimizerName, row: torch.nn.Parameter, weight_decay: Any) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW([row], weight_decay=weight_decay)
    if name == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

        return AdamW8bit([row], weight_decay=weight_decay)
    from prodigyopt import Prodigy

    with redirect_stdout(io.StringIO()):  # it prints its weight decay
        return Prodigy([row], lr=1.0, weight_decay=weight_decay, use_bias_correction=True, safeguard_warmup=True)
