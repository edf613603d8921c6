"""One optimiser per concept: schedule, clipping, loss scale and skipped steps are each concept's own."""

import io
import math
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from jaxtyping import Float
from torch import Tensor

from tara.errors import TaraError
from tara.training.settings import OptimizerName, ScheduleName

PACKAGES: dict[OptimizerName, tuple[str, str]] = {
    "adamw8bit": ("bitsandbytes", "8bit"),
    "prodigy": ("prodigyopt", "prodigy"),
}
"""The package that an optimiser needs, and the extra that installs it."""


@dataclass(frozen=True, kw_only=True)
class LossScale:
    """How much a concept's loss is enlarged so that small fp16 gradients survive; it halves when one overflows."""

    factor: float = 1.0
    good_steps: int = 0
    grows: bool = False

    GROWTH_STEPS = 2000  # as torch.amp.GradScaler

    def after(self, finite: bool) -> "LossScale":
        """The scale of the next step, given whether this step's gradients were finite."""
        if not self.grows:
            return self
        if not finite:
            return replace(self, factor=self.factor / 2, good_steps=0)
        if self.good_steps + 1 >= self.GROWTH_STEPS:
            return replace(self, factor=self.factor * 2, good_steps=0)
        return replace(self, good_steps=self.good_steps + 1)


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What became of one concept's gradient: its norm before clipping, and whether the step was skipped."""

    grad_norm: float
    skipped: bool


class ConceptOptimizers:
    """Optimisers for the rows of one (concepts, size) leaf tensor; each row steps as if it were alone."""

    def __init__(
        self,
        weights: Float[Tensor, "concepts size"],
        *,
        name: OptimizerName,
        weight_decay: float,
        max_grad_norm: float,
        loss_scaling: bool,
    ) -> None:
        self._weights = weights
        self._max_grad_norm = max_grad_norm
        # a parameter per concept that shares the leaf's memory: an update of one is an update of the leaf's row
        self._rows = [torch.nn.Parameter(row) for row in weights.detach()]
        self._optimizers = [_optimizer(name, row, weight_decay) for row in self._rows]
        first = LossScale(factor=2.0**16, grows=True) if loss_scaling else LossScale()
        self._scales = [first] * len(self._rows)

    @property
    def loss_scales(self) -> list[float]:
        """What each concept's loss is to be multiplied with before the backward pass."""
        return [scale.factor for scale in self._scales]

    def step(self, learning_rate: float) -> list[Applied]:
        """Unscale, clip and apply each concept's gradient, unless it is not finite; then forget the gradients."""
        gradient = self._weights.grad
        assert gradient is not None, "a backward pass comes first"
        if any(factor != 1.0 for factor in self.loss_scales):
            gradient /= gradient.new_tensor(self.loss_scales)[:, None]
        norms: list[float] = gradient.norm(dim=1).tolist()
        applied: list[Applied] = []
        for index, norm in enumerate(norms):
            finite = math.isfinite(norm)
            if finite:
                self._apply(index, gradient[index], norm, learning_rate)
            self._scales[index] = self._scales[index].after(finite)
            applied.append(Applied(grad_norm=norm, skipped=not finite))
        self._weights.grad = None
        return applied

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
        """Everything that a resumed run needs: tensors by name, and the rest as JSON values."""
        tensors: dict[str, Tensor] = {}
        plain: dict[str, Any] = {"loss_scales": [[scale.factor, scale.good_steps] for scale in self._scales]}
        plain["concepts"] = [
            {"state": _split(whole["state"].get(0, {}), f"{index}.", tensors), "group": _group(whole)}
            for index, whole in enumerate(optimizer.state_dict() for optimizer in self._optimizers)
        ]
        return tensors, plain

    def load(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Take up a state that `state` gave."""
        for index, (optimizer, saved) in enumerate(zip(self._optimizers, plain["concepts"], strict=True)):
            own = {
                key.removeprefix(f"{index}."): value for key, value in tensors.items() if key.startswith(f"{index}.")
            }
            state = saved["state"] | own
            group = saved["group"] | {"params": [0]}
            optimizer.load_state_dict({"state": {0: state} if state else {}, "param_groups": [group]})
        self._scales = [
            replace(scale, factor=factor, good_steps=good)
            for scale, (factor, good) in zip(self._scales, plain["loss_scales"], strict=True)
        ]


def learning_rate_schedule(name: ScheduleName, *, peak: float, warmup: int, steps: int) -> Callable[[int], float]:
    """The learning rate as a function of the step (from 0), by diffusers' schedule of that name."""
    if name == "constant" and warmup:
        name = "constant_with_warmup"  # diffusers' constant schedule drops the warm-up without a word
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=peak)
    schedule = get_scheduler(name, stand_in, num_warmup_steps=warmup, num_training_steps=steps)
    multiplier = schedule.lr_lambdas[0]
    # polynomial reads the peak itself, so every schedule is a factor of it
    return lambda step: peak * float(multiplier(step))


def check_optimizer(name: OptimizerName) -> None:
    """Make sure that an optimiser's package is there.

    Raises:
        TaraError: when it is not installed, or cannot be imported.
    """
    if name not in PACKAGES:
        return
    package, extra = PACKAGES[name]
    try:
        import_module(package)
    except ImportError as missing:
        raise TaraError(
            f"The optimiser '{name}' needs the package {package}. Install it with `pip install 'tara[{extra}]'`, "
            "or choose adamw."
        ) from missing


def _optimizer(name: OptimizerName, row: torch.nn.Parameter, weight_decay: float) -> torch.optim.Optimizer:
    check_optimizer(name)
    if name == "adamw":
        return torch.optim.AdamW([row], weight_decay=weight_decay)
    if name == "prodigy":
        return _prodigy([row], weight_decay)
    return _adamw8bit([row], weight_decay)


def _prodigy(rows: Sequence[torch.nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
    from prodigyopt import Prodigy

    # prodigyopt's signature says int where its documentation says float
    decay: Any = weight_decay
    with redirect_stdout(io.StringIO()):  # it prints that it uses the weight decay it was asked for
        return Prodigy(rows, lr=1.0, weight_decay=decay, use_bias_correction=True, safeguard_warmup=True)


def _adamw8bit(rows: Sequence[torch.nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

    optimizer: torch.optim.Optimizer = AdamW8bit(rows, weight_decay=weight_decay)
    return optimizer


def _split(values: dict[str, Any], prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Move the tensors of an optimiser's state to ``tensors``; return the rest."""
    for key, value in values.items():
        if isinstance(value, Tensor):
            tensors[prefix + key] = value.detach().cpu().contiguous()
    return {key: value for key, value in values.items() if not isinstance(value, Tensor)}


def _group(whole: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's only parameter group as JSON values."""
    group: dict[str, Any] = whole["param_groups"][0]
    return {
        key: value.item() if isinstance(value, Tensor) else value for key, value in group.items() if key != "params"
    }
