"""A device that is not there: its tensors hold CPU tensors; mixing them with CPU tensors is an error, as on a GPU.

Importing this module registers it as PyTorch's backend of third parties, for the rest of the process. It computes as
the CPU does; what is checked and counted is where tensors are, and how often they travel.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "sim"
counts: Counter[str] = Counter()
"""``to_host`` and ``to_device``: transfers; ``float64``: operations with a result of that type on the device."""

_held: dict[int, Tensor] = {}  # the CPU tensor of each storage on the device
# the other operand may be on the CPU, as on CUDA
_MIXING = ("aten::_copy_from", "aten::copy_", "aten::_to_copy", "aten::set_")


class _Backend(_DummyBackendModule):
    """What accelerate, autocast and the random number generators ask of a backend."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def is_bf16_supported(self, *_: Any) -> bool:
        return True

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def get_rng_state(self, *_: Any) -> Tensor:
        return torch.get_rng_state()

    def _nothing(self, *_: Any) -> None: ...

    set_device = synchronize = empty_cache = manual_seed = manual_seed_all = set_rng_state = _nothing

    def _is_in_bad_fork(self) -> bool:
        return False


def _on_device(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == NAME


def _cpu(tensor: Tensor) -> Tensor:
    return _held[tensor.untyped_storage()._cdata]


def _device(tensor: Tensor) -> Tensor:
    assert tensor.device.type == "cpu"
    if tensor.dtype in (torch.float64, torch.complex128):
        counts["float64"] += 1
    empty = torch._C._acc.create_empty_tensor(tuple(tensor.shape), tensor.dtype)
    _held[empty.untyped_storage()._cdata] = tensor
    return empty


def _refuse_mixing(name: str, values: list[Any]) -> None:
    for value in values:
        if not isinstance(value, Tensor) or _on_device(value) or not value.dim() or name in _MIXING:
            continue
        if not (name.startswith("aten::index") and value.dtype in (torch.long, torch.bool)):
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {NAME} and cpu in {name}.")


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation on the CPU tensors; arguments that it changes in place and its results are tensors of the device."""
    name = op._schema.name
    values, shape = tree_flatten((args, kwargs))
    _refuse_mixing(name, values)
    if name == "aten::_copy_from":
        return _copied(*args)
    if name == "aten::_local_scalar_dense":
        counts["to_host"] += 1
        return _cpu(args[0]).item()
    plain = [
        _cpu(value) if _on_device(value) else torch.device("cpu") if isinstance(value, torch.device) else value
        for value in values
    ]
    inner, named = tree_unflatten(plain, shape)
    if name in ("aten::view", "aten::_unsafe_view", "aten::_reshape_alias"):
        result = inner[0].reshape(inner[1])
    elif name == "aten::as_strided" and not inner[0].is_contiguous():
        result = op(inner[0].contiguous(), *inner[1:], **named)
    else:
        result = op(*inner, **named)
    for raw, value in zip(plain, values, strict=True):  # resized in place
        if _on_device(value) and raw.shape != value.shape:
            value.data = _device(raw)
    given = {id(raw): value for raw, value in zip(plain, values, strict=True) if _on_device(value)}
    results, shape = tree_flatten(result)
    return tree_unflatten([_answer(one, given) for one in results], shape)


def _answer(value: Any, given: dict[int, Any]) -> Any:
    """A result as the caller gets it; one that is an argument, changed in place, is that argument."""
    if id(value) in given:
        return given[id(value)]
    return _device(value) if isinstance(value, Tensor) else value


def _copied(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    if not _on_device(target):
        counts["to_host"] += 1
    elif not _on_device(source):
        counts["to_device"] += 1
    raw = _cpu(source) if _on_device(source) else source
    (_cpu(target) if _on_device(target) else target).copy_(raw)
    return target


def _empty(size: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return _device(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return _device(torch.empty(size, dtype=dtype))


def _convolution(given: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    return _device(torch.convolution(_cpu(given), _cpu(weight), None if bias is None else _cpu(bias), *options))


def _convolution_backward(gradient: Tensor, given: Tensor, weight: Tensor, *options: Any) -> Any:
    *rest, transposed, padding, groups, mask = options
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    gradients = torch.ops.aten.convolution_backward(
        _cpu(gradient),
        _cpu(given),
        _cpu(weight),
        [channels] if mask[2] else None,
        *rest,
        transposed,
        padding,
        groups,
        mask,
    )
    return tuple(None if one is None else _device(one) for one in gradients)


_VIEWS = (
    "expand transpose.int permute unsqueeze squeeze squeeze.dim squeeze.dims select.int slice.Tensor split.Tensor "
    "split_with_sizes unbind.int diagonal t _unsafe_view view _reshape_alias alias unfold view.dtype"
)


def _view(qualified: str) -> Callable[..., Any]:
    name, _, overload = qualified.partition(".")
    op = getattr(getattr(torch.ops.aten, name), overload or "default")
    return lambda *args, **kwargs: _run(op, *args, **kwargs)


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
_library = torch.library.Library("_", "IMPL")
_library.fallback(_run, "PrivateUse1")
_kernels: dict[str, Callable[..., Any]] = {
    "empty.memory_format": _empty,
    "empty_strided": _empty_strided,
    "convolution_overrideable": _convolution,
    "convolution_backward_overrideable": _convolution_backward,
    **{qualified: _view(qualified) for qualified in _VIEWS.split()},
}
for _operator, _kernel in _kernels.items():
    torch.library.impl(f"aten::{_operator}", "privateuseone")(_kernel)
