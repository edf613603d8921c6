"""What the speed benchmarks share: full-size bases, adapters for them, interleaved timing, and counting of operations.

Every case of a comparison is timed once in each round, in a random order, so that neither other work on the machine nor
the previous case slows down one of them alone. A figure is [median, lowest, highest] over the rounds, and a ratio is
taken within its round. Where a figure may come near its bound the first case is there twice: the ratio of the second to
the first, an A/A control, shows the noise.
On a CPU a case may run side by side with the first one (`rows_side_by_side`): on one core, the two take turns at every
block of their models, some seventy times in a step, and the ratio is of such pairs. Other work on the machine, or on
the core's other hardware thread, makes a step up to twice as slow for seconds at a time; so it slows down both alike.
On a CPU it is one thread and the process's own CPU time; on a GPU wall-clock time between two synchronisations.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import torch
import transformers
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from full_size import random_pipeline
from result_files import RESULTS, check, command, command_line, earlier_rows, run_info, show_checks
from result_files import write as write_result
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from tara.adapters.adapter import Adapter
from tara.adapters.card import AdapterCard, Context
from tara.core.lora import LowRank, new_low_rank
from tara.families.base import Base
from tara.families.single_file import CONFIGS
from tara.inference.stock_pipeline import make_scheduler
from tara.training.settings import Targets

RANK = 8
WORDS = (
    *("cat", "dog", "cow", "pig", "fox", "owl", "bee", "ant", "bat", "rat", "elk", "hen", "ape", "ram", "yak", "emu"),
    *("eel", "cod", "crab", "duck", "goat", "hare", "lion", "mole", "moth", "seal", "swan", "toad", "wolf", "bear"),
    *("deer", "frog"),
)
"""Words of one token each: the text encoder reads 32 of them in one prompt."""
AGAIN = ", again"
CONTROL = f"untouched{AGAIN}"
KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_ARENA_MAX": "1"}
"""Settings of glibc's allocator, which reads them when a process starts; all threads have one heap."""
BLOCKS = ResnetBlock2D, Attention, FeedForward
"""Parts of a U-Net at which two calls take turns."""
NO_GPU = "measured with --device cuda, where there is one"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A family of full-size bases: its configs, the precision and sides in pixels that it is measured in."""

    configs: str
    dtype: torch.dtype = torch.bfloat16
    pixels: int = 256
    own_pixels: int


FAMILIES = ("sd15", "sdxl", "toyland")
SHAPES = {"sd15": Shape(configs="sd1", own_pixels=512), "sdxl": Shape(configs="sdxl", own_pixels=1024)}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What a script's command line says: one family (all when None), the device, and the result file."""

    family: str | None
    device: str
    out: Path


def parse_arguments(description: str | None) -> Arguments:
    """Read the command line; a result file has its script's name with `cpu` or `gpu`."""
    parser = command_line(description)
    parser.add_argument("--family", choices=SHAPES, help="only this one")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; leave --device out")
    name = f"{Path(sys.argv[0]).stem}_{'cpu' if args.device == 'cpu' else 'gpu'}.json"
    return Arguments(family=args.family, device=args.device, out=args.out or RESULTS / name)


def build_pipeline(shape: Shape, device: str = "cpu") -> Any:
    """A frozen stock pipeline of a family's published shape with random weights, and DDIM."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(shape.dtype)
    try:
        pipe = random_pipeline(CONFIGS / shape.configs)
    finally:
        torch.set_default_dtype(before)
    pipe.scheduler = make_scheduler("ddim", pipe.scheduler.config, steps=1)
    pipe.set_progress_bar_config(disable=True)
    for part in Base(pipe).parts:
        part.requires_grad_(False).eval()
    return pipe.to(device)


def random_adapters(base: Base, count: int, targets: Targets = "cross_kv", context: Context = "delta") -> list[Adapter]:
    """Adapters of rank 8 as training makes them, with random weights, each for another word."""
    adapters: list[Adapter] = []
    for number, word in enumerate(WORDS[:count]):
        generator = torch.Generator().manual_seed(number)
        layers: dict[str, LowRank] = {}
        for path in base.target_layers(targets):
            fresh = new_low_rank(*base.projection_sizes(path), rank=RANK, generator=generator)
            layers[path] = LowRank(fresh.a, 0.01 * torch.randn(fresh.b.shape, generator=generator), fresh.scale)
        card = AdapterCard(
            rare_word=word,
            class_word="",
            family=base.family.name,
            rank=RANK,
            alpha=RANK,
            targets=targets,
            phrase=f"a photo of a {word}",
            context=context,
        )
        adapters.append(Adapter(card, layers, name=f"{word}.safetensors"))
    return adapters


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to time: ``ready`` gives, for a ``with`` block, the call that is timed.

    ``times``: how often it is called in one measurement, for what is too short to be timed once. ``model``: whose
    blocks the call goes through, and no other case's, for `rows_side_by_side`.
    """

    name: str
    ready: Callable[[], AbstractContextManager[Callable[[], Any]]]
    times: int = 1
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])
    model: torch.nn.Module | None = None


def case(
    name: str, call: Callable[[], Any], times: int = 1, model: torch.nn.Module | None = None, **columns: Any
) -> Case:
    """A case that needs no preparation."""
    return Case(name=name, ready=lambda: nullcontext(call), times=times, columns=columns, model=model)


def clock(device: str) -> Callable[[], float]:
    """The clock of a device, in seconds: CPU time, or wall-clock time after the GPU has finished."""
    if device == "cpu":
        return time.process_time

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """Work in a process of its own, which then gives its memory back.

    Until then it keeps what it frees: otherwise some cases, depending on where the heap ends, get fresh pages at every
    call and others none, which is 5 % of a step.
    """
    os.environ.update(KEEP_FREED_MEMORY)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def set_up_process() -> None:
    """How every measuring process begins: one thread, and no messages or progress bars of other libraries."""
    torch.set_num_threads(1)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def taking_turns(cases: Sequence[Case], rounds: int, device: str = "cpu", warm: bool = True) -> list[list[float]]:
    """Seconds of each case in each round."""
    now = clock(device)
    seconds: list[list[float]] = [[] for _ in cases]
    if warm:  # the first call of all is slower than any later one
        with cases[0].ready() as call:
            call()
    for number in range(rounds):
        for index in random.Random(number).sample(range(len(cases)), len(cases)):
            with cases[index].ready() as call:
                begun = now()
                for _ in range(cases[index].times):
                    call()
                seconds[index].append((now() - begun) / cases[index].times)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return seconds


def timed_rows(
    part: str, cases: Sequence[Case], rounds: int, device: str = "cpu", warm: bool = True
) -> list[dict[str, Any]]:
    """Time the cases in turns: one row for each, its ratios to the first case."""
    seconds = taking_turns(cases, rounds, device, warm)
    return [_timed_row(part, one, own, seconds[0]) for one, own in zip(cases, seconds, strict=True)]


def rows_side_by_side(part: str, cases: Sequence[Case], rounds: int) -> list[dict[str, Any]]:
    """The same in CPU time, with every case side by side with the first one, and a ratio of each such pair.

    The first one's row is of its times beside the second one, its control.
    """
    first, *others = cases
    pairs: list[list[tuple[float, float]]] = [[] for _ in others]
    with first.ready() as base:
        base()  # the first call of all is slower than any later one
        for number in range(rounds):
            for index in random.Random(number).sample(range(len(others)), len(others)):
                with others[index].ready() as call:
                    models = [one.model for one in (first, others[index]) if one.model is not None]
                    # the second call has the weights of every block in the cache already, so each leads once
                    both = [side_by_side(base, call, models, leader) for leader in (0, 1)]
                    pairs[index].append((sum(pair[0] for pair in both) / 2, sum(pair[1] for pair in both) / 2))
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    bases, own = zip(*(zip(*both, strict=True) for both in pairs), strict=True)
    rows = [_timed_row(part, one, *figures) for one, *figures in zip(others, own, bases, strict=True)]
    return [_timed_row(part, first, bases[0], bases[0]), *rows]


def side_by_side(
    one: Callable[[], Any], other: Callable[[], Any], models: Sequence[torch.nn.Module], leader: int = 0
) -> tuple[float, float]:
    """CPU seconds of two calls, in threads that take turns at each block of the models; ``leader`` (0 or 1) begins."""
    turns = _Turns(leader)
    blocks = [part for model in models for part in model.modules() if isinstance(part, BLOCKS)]
    hooks = [block.register_forward_pre_hook(turns.pass_on) for block in blocks]
    try:
        with ThreadPoolExecutor(2) as threads:
            both = [threads.submit(turns.seconds, place, call) for place, call in enumerate((one, other))]
            return both[0].result(), both[1].result()
    finally:
        for hook in hooks:
            hook.remove()


class _Turns:
    """Two threads, of which one works at a time, both on the same core."""

    def __init__(self, leader: int) -> None:
        self.changed, self.place, self.turn, self.alone = threading.Condition(), threading.local(), leader, False

    def seconds(self, place: int, call: Callable[[], Any]) -> float:
        """CPU time of a call in this thread."""
        torch.set_num_threads(1)  # per thread
        if hasattr(os, "sched_setaffinity"):  # per thread too; Linux only
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        self.place.mine = place
        with self.changed:
            self.changed.wait_for(self.may_work)
        begun = time.thread_time()
        try:
            call()
            return time.thread_time() - begun
        finally:
            with self.changed:
                self.alone = True
                self.changed.notify_all()

    def pass_on(self, *_: Any) -> None:
        """Let the other thread work until it passes on: the hook before a block."""
        with self.changed:
            self.turn = 1 - self.place.mine
            self.changed.notify_all()
            self.changed.wait_for(self.may_work)

    def may_work(self) -> bool:
        """Whether it is this thread's turn, or the other one has ended."""
        return self.alone or self.turn == self.place.mine


def _timed_row(part: str, one: Case, own: Sequence[float], bases: Sequence[float]) -> dict[str, Any]:
    ratios = [value / base for value, base in zip(own, bases, strict=True)]
    return {
        "part": part,
        "case": one.name,
        **one.columns,
        "seconds": spread(own),
        "ratio": spread(ratios),
        "ratios": [float(f"{ratio:.4g}") for ratio in ratios],
        "rounds": len(own),
    }


def skipped(part: str, name: str, why: str, **columns: Any) -> dict[str, Any]:
    """A row for what this machine cannot measure."""
    return {"part": part, "case": name, **columns, "skipped": why}


def spread(values: Sequence[float]) -> list[float]:
    """[median, lowest, highest], to four digits."""
    return [float(f"{value:.4g}") for value in (median(values), min(values), max(values))]


class Operations(TorchDispatchMode):
    """Every operation in order, with the shape and precision of each tensor that goes in."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the operation, and do it."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        self.calls.append((str(func), *((tuple(tensor.shape), tensor.dtype) for tensor in tensors)))
        return func(*args, **(kwargs or {}))


def counted(call: Callable[[], Any]) -> tuple[list[tuple[Any, ...]], int]:
    """The operations of a call, and its floating-point operations."""

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    # torch does not count the attention that it uses on a CPU
    on_cpu: Any = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as flops, Operations() as operations:
        call()
    return operations.calls, int(flops.get_total_flops())


def at_most(name: str, value: float, bound: float) -> dict[str, Any]:
    """A check that a value is no larger than a bound."""
    return check(name, value, f"<= {bound:.4g}", value <= bound)


def rows_where(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> Iterator[Mapping[str, Any]]:
    """The timed rows with these columns."""
    for row in rows:
        if "skipped" not in row and all(row.get(name) == value for name, value in wanted.items()):
            yield row


def merged(path: Path, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of some families, and an earlier result file's rows of the others, in the families' order."""
    measured = {row["family"] for row in rows}
    kept = [row for row in earlier_rows(path) if row.get("family") in set(FAMILIES) - measured]
    both = [*kept, *({**row, "command": command()} for row in rows)]
    return sorted(both, key=lambda row: FAMILIES.index(row["family"]))


def families_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The families that have rows, in order."""
    return [family for family in FAMILIES if any(row.get("family") == family for row in rows)]


def write(
    path: Path, rows: Sequence[Mapping[str, Any]], checks: Sequence[Mapping[str, Any]], device: str = "cpu"
) -> None:
    """Write a result file and show it."""
    gpu = {} if device == "cpu" else {"hardware": torch.cuda.get_device_name()}
    write_result(path, {**run_info(), **gpu, "threads": torch.get_num_threads(), "rows": rows, "checks": checks})
    console, table = Console(highlight=False), Table("family", "part", "case", "N", "seconds", "ratio")
    for row in rows:
        figures = (
            [row["skipped"], ""]
            if "skipped" in row
            else [_format_ratio(row.get(name)) for name in ("seconds", "ratio")]
        )
        table.add_row(row.get("family", ""), row["part"], row["case"], str(row.get("adapters", "")), *figures)
    console.print(table)
    show_checks(checks)


def _format_ratio(figure: Sequence[float] | None) -> str:
    return "" if figure is None else f"{figure[0]:.4g} ({figure[1]:.4g} to {figure[2]:.4g})"
