"""How much memory does training at full size take, and what is in it?

    python benchmarks/training_memory.py                  writes benchmarks/results/training_memory_cpu.json
    python benchmarks/training_memory.py --family sd15    measures one family, and keeps the other one's row
    python benchmarks/training_memory.py --device cuda    the same on a GPU, with its allocator's peak

SD 1.5 at 512 pixels and SDXL at 1024, random weights in bfloat16, one photo a step, text keys and values, with gradient
checkpointing and, for SD 1.5, without. Every tensor that a run allocates is counted until it is freed, and weights are
added by their size, so the figures are what a GPU's allocator is asked for, on whichever device the run is. In addition
a GPU holds the CUDA context (some hundred MiB), workspaces of convolutions, and gaps. In a row, GiB:

- `caching`: the peak while photos and captions are encoded, with the whole base on the device (`weights`), and the
  autoencoder's activations (`at_work`);
- `step`: the peak of the steps, with the U-Net alone on the device (text encoders and autoencoder are offloaded to CPU
  memory), and what it consists of: `weights`; `learned`, the adapter with its gradient and AdamW's two averages;
  `cached`, encoded photos and captions; `waiting`, what the forward pass keeps for the backward pass (with
  checkpointing, the input of each block); `at_work`, the rest: what is being recomputed, or differentiated.
"""

from __future__ import annotations

import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import speed_shared as speed
import torch
from speed_shared import Shape
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_speed import concepts_in

from tara.families.base import Base
from tara.training.inputs import check_inputs
from tara.training.loop import Training
from tara.training.settings import train_settings

MEMORY, CACHING, STEP = "memory", "caching", "step"
STEPS = 2
"""AdamW allocates its averages in the first one."""
BOUNDS_GIB = {"sd15": 4, "sdxl": 10}
CHECKPOINTING = {"sd15": (True, False), "sdxl": (True,)}


class LiveBytes(TorchDispatchMode):
    """Bytes of a device's tensors that were allocated since it was entered and are alive; ``most`` is the peak."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self._device = device
        self._sizes: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation, and count what is new among its results."""
        before = {_key(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and _key(tensor) not in before:
                self._note(tensor)
        return result

    def _note(self, tensor: torch.Tensor) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key in self._sizes or not storage.nbytes() or tensor.device.type != self._device:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._end, key)

    def _end(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def forget_peak(self) -> None:
        """Start a new part."""
        self.most = self.now


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def measure(
    family: str, shape: Shape, pixels: int, checkpointing: bool = True, device: str = "cpu"
) -> list[dict[str, Any]]:
    """The rows of one family; runs in a process of its own."""
    speed.set_up_process()
    pipe = speed.build_pipeline(shape, device)
    settings = train_settings(
        base=family,
        rank=speed.RANK,
        steps=STEPS,
        batch_size=1,
        resolution=pixels,
        flip=False,
        gradient_checkpointing=checkpointing,
    )
    with tempfile.TemporaryDirectory() as folder, LiveBytes(device) as live:
        training = Training(check_inputs(concepts_in(Path(folder), 1), settings, Base(pipe)))
        caching, kept = live.most, live.now
        live.forget_peak()
        after_forward: list[int] = []
        pipe.unet.register_forward_hook(lambda *_: after_forward.append(live.now))
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        most = allocated = 0
        for record in training.steps():
            # not after the last one, when offloaded parts come back
            most = live.most
            allocated = 0 if device == "cpu" else torch.cuda.max_memory_allocated()
            print(f"{family}: step {record.index} of {STEPS}", file=sys.stderr, flush=True)
    factors = training.state().tensors["weights"].nbytes
    # the last call comes after AdamW has allocated its averages
    parts = {
        "weights": _bytes_of(pipe.unet),
        "learned": factors * len(("factors", "gradient", "first moment", "second moment")),
        "cached": kept - factors,
    }
    parts["waiting"] = after_forward[-1] - kept - 2 * factors
    whole = _bytes_of(pipe.unet, pipe.vae, pipe.text_encoder, getattr(pipe, "text_encoder_2", None))
    before = {"weights": whole, "at_work": caching}
    step = parts["weights"] + most
    parts["at_work"] = step - sum(parts.values())
    columns = {"family": family, "part": MEMORY, "pixels": pixels, "device": device, "checkpointing": checkpointing}
    return [
        {**columns, "case": CACHING, "gib": _gib(whole + caching), "consists_of": _in_gib(before)},
        {**columns, "case": STEP, "gib": _gib(step), "consists_of": _in_gib(parts)}
        | ({"allocated_gib": _gib(allocated)} if allocated else {}),
    ]


def _bytes_of(*models: torch.nn.Module | None) -> int:
    return sum(parameter.nbytes for model in models if model is not None for parameter in model.parameters())


def _gib(size: int) -> float:
    return float(f"{size / 2**30:.4g}")


def _in_gib(sizes: Mapping[str, int]) -> dict[str, float]:
    return {name: _gib(size) for name, size in sizes.items()}


def checks_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The bounds of all rows."""
    return [
        speed.at_most(f"{family}, {row['pixels']} pixels, {_way(row)}, peak of {row['case']}, GiB", row["gib"], bound)
        for family, bound in BOUNDS_GIB.items()
        for row in speed.rows_where(rows, family=family)
    ]


def _way(row: Mapping[str, Any]) -> str:
    return "checkpointing" if row["checkpointing"] else "no checkpointing"


def main() -> None:
    """The command line."""
    args = speed.parse_arguments(__doc__)
    torch.set_num_threads(1)
    for family in [args.family] if args.family else list(speed.SHAPES):
        shape, own = speed.SHAPES[family], []
        for checkpointing in CHECKPOINTING[family]:
            own += speed.alone(measure, family, shape, shape.own_pixels, checkpointing, args.device)
        rows = speed.merged(args.out, own)
        checks = checks_of(rows)
        if args.device == "cpu":
            rows.append(speed.skipped(MEMORY, "what a GPU's allocator gave out", speed.NO_GPU))
        speed.write(args.out, rows, checks, args.device)


if __name__ == "__main__":
    main()
