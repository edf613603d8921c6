"""What does composing cost? Denoising steps with N adapters, relative to the same pipeline without any.

    python benchmarks/composition_speed.py                  writes benchmarks/results/composition_speed_cpu.json
    python benchmarks/composition_speed.py --family sd15    measures one family, and keeps the other one's rows
    python benchmarks/composition_speed.py --device cuda    images of the families' own sizes, in wall-clock time

SD 1.5 and SDXL at full size, with random weights in bfloat16. A case is one guided denoising step of a stock diffusers
pipeline (`num_inference_steps=1`, latents as output); what is computed once per prompt is computed before:

- `untouched`: stock processors; `tara cross_kv`, `tara attention`: N of our adapters, of each target set;
- `diffusers`: the same cross_kv files by `load_lora_weights` and `set_adapters`, which acts on all tokens;
- `published`: the published form, a dense matrix per layer and adapter multiplied at every step (baselines.py).

For `operations` the step is not timed: its operations are listed, and its floating-point operations counted, with no
adapter and with 32 of either target set. A `batch of 8`, at half the side, gives each image two adapters of its own,
which diffusers generates one by one; `untouched, one by one` shows what the missing batch costs by itself. On a CPU
every case is timed side by side with `untouched`, both on U-Nets of their own that share one set of weights:
speed_shared.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, get_args

import baselines
import psutil
import speed_shared as speed
import torch
from result_files import check
from speed_shared import Case, Shape

import tara
from tara.adapters.adapter import Adapter
from tara.core.tokens import word_spans
from tara.families.base import Base
from tara.training.settings import Targets

STEP, BATCH, OPERATIONS = "denoising step", "batch of 8", "operations"
MARGIN = 2 * 2**30  # bytes of memory to leave free


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many adapters each case is timed with."""

    cross_kv: Sequence[int] = (0, 1, 2, 4, 8, 32)
    attention: Sequence[int] = (1, 2, 4, 8, 32)
    diffusers: Sequence[int] = (1, 8)
    published: Sequence[int] = (1, 2, 4, 8)


class Comparison:
    """One family's base, its adapters, and the cases."""

    def __init__(self, shape: Shape, device: str, counts: Counts, folder: Path, most_bytes: int | None) -> None:
        self.pipe = speed.build_pipeline(shape, device)
        self.stock, self.stock_again = baselines.twin(self.pipe), baselines.twin(self.pipe)
        self.device, self.counts, self.folder, self.most_bytes = device, counts, folder, most_bytes
        self.pixels = shape.pixels if device == "cpu" else shape.own_pixels
        self.prompt = " ".join(speed.WORDS)
        most = max(*counts.cross_kv, *counts.diffusers), max(*counts.attention, *counts.published)
        # a step is the same in every context, and this one takes the least preparation
        self.cross_kv, self.attention = (
            speed.random_adapters(Base(self.pipe), count, targets, "prompt")
            for count, targets in zip(most, get_args(Targets), strict=True)
        )

    def rows(self, rounds: int) -> list[dict[str, Any]]:
        """All rows of the family."""
        cases, left_out = self.published()
        steps = [*self.untouched(self.prompt, self.pixels), *self.tara(), *self.diffusers(), *cases]
        rows = [*self.timed(STEP, steps, rounds), *left_out, *self.operations()]
        return [*rows, *self.timed(BATCH, self.batches(), min(rounds, BATCH_ROUNDS))]

    def timed(self, part: str, cases: Sequence[Case], rounds: int) -> list[dict[str, Any]]:
        """The rows of cases: on a CPU each goes side by side with the first."""
        if self.device == "cpu":
            return speed.rows_side_by_side(part, cases, rounds)
        return speed.timed_rows(part, cases, rounds, self.device)

    def step(self, pipe: Any, arguments: dict[str, Any], pixels: int) -> Callable[[], Any]:
        """One denoising step with a pipeline's arguments."""
        return partial(
            pipe,
            **arguments,
            height=pixels,
            width=pixels,
            num_inference_steps=1,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        )

    def stock_step(self, pipe: Any, prompt: str | list[str], pixels: int) -> Callable[[], Any]:
        """A step without tara: embeddings as input, stock processors."""
        with tara.prepared(self.pipe, prompt) as arguments:
            stock = {name: value for name, value in arguments.items() if name != "cross_attention_kwargs"}
        return self.step(pipe, stock, pixels)

    @contextmanager
    def our_step(
        self, adapters: Any, prompt: str | list[str], pixels: int, warm: bool = False
    ) -> Generator[Callable[[], Any]]:
        """A step with our adapters; a warm one is not the first after their global parts were fused."""
        with tara.prepared(self.pipe, prompt, adapters, composer="tara") as arguments:
            call = self.step(self.pipe, arguments, pixels)
            if warm:
                call()
            yield call

    def untouched(self, prompt: str | list[str], pixels: int) -> list[Case]:
        """The first case, and its control."""
        return [
            speed.case(name, self.stock_step(pipe, prompt, pixels), model=pipe.unet)
            for name, pipe in (("untouched", self.stock), (speed.CONTROL, self.stock_again))
        ]

    def tara(self) -> list[Case]:
        """Ours, with each number of adapters of each target set."""
        sets = (
            ("cross_kv", self.cross_kv, self.counts.cross_kv),
            ("attention", self.attention, self.counts.attention),
        )
        return [
            Case(
                name=f"tara {targets}",
                ready=partial(self.our_step, adapters[:count], self.prompt, self.pixels, targets == "attention"),
                columns={"adapters": count},
                model=self.pipe.unet,
            )
            for targets, adapters, counts in sets
            for count in counts
        ]

    def diffusers(self) -> list[Case]:
        """The same files as diffusers loads and sums them."""
        pipe = baselines.twin(self.pipe)
        names = baselines.load_into_diffusers(pipe, self.cross_kv[: max(self.counts.diffusers)], self.folder)
        call = self.stock_step(pipe, self.prompt, self.pixels)

        @contextmanager
        def ready(count: int) -> Generator[Callable[[], Any]]:
            pipe.set_adapters(names[:count])
            yield call

        return [
            Case(name="diffusers", ready=partial(ready, count), columns={"adapters": count}, model=pipe.unet)
            for count in self.counts.diffusers
        ]

    def published(self) -> tuple[list[Case], list[dict[str, Any]]]:
        """The published form, and rows of what does not fit into memory."""
        pipe, tokenized = baselines.twin(self.pipe), Base(self.pipe).tokenize(self.prompt)
        dense: list[baselines.PublishedAdapter] = []
        cases: list[Case] = []
        left_out: list[dict[str, Any]] = []
        call = self.stock_step(pipe, self.prompt, self.pixels)

        @contextmanager
        def ready(count: int) -> Generator[Callable[[], Any]]:
            with baselines.published(pipe.unet, dense[:count]):
                yield call

        size = dense_bytes(self.attention[0], self.pipe.unet.dtype)
        # one adapter's size more, for fusing beside the weights
        limit = free_bytes(self.device) - size - MARGIN if self.most_bytes is None else self.most_bytes
        for count in self.counts.published:
            columns = {"adapters": count, "dense_mb": round(count * size / 1e6)}
            if count * size > limit:
                left_out.append(speed.skipped(STEP, "published", "does not fit into memory", **columns))
                continue
            for adapter in self.attention[len(dense) : count]:
                (span,) = word_spans(self.prompt, adapter.card.rare_word)
                tokens = tokenized.positions(span)
                dense.append(baselines.PublishedAdapter.of(adapter, tokens, self.device, self.pipe.unet.dtype))
            cases.append(Case(name="published", ready=partial(ready, count), columns=columns, model=pipe.unet))
        return cases, left_out

    def operations(self) -> list[dict[str, Any]]:
        """Operations of a step with no adapter and with all of a target set: where they differ, and their counts."""
        none, flops_of_none = self.counted([])
        untouched = speed.counted(self.stock_step(self.stock, self.prompt, self.pixels))[1]
        rows: list[dict[str, Any]] = []
        for targets, adapters in (("cross_kv", self.cross_kv), ("attention", self.attention)):
            many, flops_of_many = self.counted(adapters)
            different = abs(len(none) - len(many)) + sum(a != b for a, b in zip(none, many, strict=False))
            rows.append(
                {
                    "part": OPERATIONS,
                    "case": f"tara {targets}",
                    "adapters": len(adapters),
                    "operations": len(none),
                    "different": different,
                    "flops": flops_of_many,
                    "flops_without_adapters": flops_of_none,
                    "flops_untouched": untouched,
                }
            )
        return rows

    def counted(self, adapters: Sequence[Adapter]) -> tuple[list[tuple[Any, ...]], int]:
        """The operations of a step with prepared adapters, and its floating-point operations."""
        with self.our_step(adapters, self.prompt, self.pixels, warm=True) as call:
            return speed.counted(call)

    def batches(self) -> list[Case]:
        """Eight images, each with two adapters of its own, beside eight with none and beside one after the other."""
        prompts, pixels = [f"{one} and {other}" for one, other in self.pairs()], self.pixels // 2
        lists = [[self.named(one), self.named(other)] for one, other in self.pairs()]
        summed = baselines.twin(self.pipe)
        baselines.load_into_diffusers(summed, list(dict.fromkeys(one for pair in lists for one in pair)), self.folder)
        return [
            *self.untouched(prompts, pixels),
            Case(
                name="tara cross_kv",
                ready=partial(self.our_step, lists, prompts, pixels),
                columns={"adapters": 2},
                model=self.pipe.unet,
            ),
            self.one_by_one("diffusers, one by one", summed, prompts, pixels, adapters=2),
            self.one_by_one("untouched, one by one", self.stock_again, prompts, pixels, adapters=0),
        ]

    def one_by_one(self, name: str, pipe: Any, prompts: Sequence[str], pixels: int, adapters: int) -> Case:
        """What adapters in the weights need when every image has its own: a step for each image."""
        calls = [self.stock_step(pipe, prompt, pixels) for prompt in prompts]

        def generate() -> None:
            for pair, call in zip(self.pairs(), calls, strict=True):
                if adapters:
                    pipe.set_adapters(list(pair))
                call()

        return speed.case(name, generate, model=pipe.unet, **({"adapters": adapters} if adapters else {}))

    def pairs(self) -> list[tuple[str, str]]:
        """Eight different pairs of four words."""
        words = speed.WORDS[:4]
        return [(words[place % 4], words[(place + 1 + place // 4) % 4]) for place in range(8)]

    def named(self, word: str) -> Adapter:
        """The adapter of a word."""
        return self.cross_kv[speed.WORDS.index(word)]


def dense_bytes(adapter: Adapter, dtype: torch.dtype) -> int:
    """Size of an adapter's layers as dense matrices."""
    return sum(low_rank.d_in * low_rank.d_out for low_rank in adapter.layers.values()) * dtype.itemsize


def measure(
    family: str, shape: Shape, device: str, rounds: int, counts: Counts, most_bytes: int | None = None
) -> list[dict[str, Any]]:
    """The rows of one family; runs in a process of its own, whose memory is given back."""
    speed.set_up_process()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        rows = Comparison(shape, device, counts, Path(folder), most_bytes).rows(rounds)
    return [{"family": family, **row} for row in rows]


def free_bytes(device: str) -> int:
    """Free memory of the base's device."""
    return psutil.virtual_memory().available if device == "cpu" else torch.cuda.mem_get_info()[0]


def checks_of(family: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bounds of one family's rows."""
    steps = [row for row in rows if row["part"] == STEP]
    (control,) = speed.rows_where(steps, case=speed.CONTROL)
    low, high = control["ratio"][1:]
    checks: list[dict[str, Any]] = []
    ours = {row["adapters"]: row for row in speed.rows_where(steps, case="tara cross_kv")}
    for count, row in ours.items():
        name = f"{family}, cross_kv, N = {count}, step over untouched, no more than the A/A control"
        checks.append(speed.at_most(name, row["ratio"][0], high))
    for row in speed.rows_where(rows, part=OPERATIONS):
        extra, name = row["flops"] - row["flops_without_adapters"], f"{family}, {row['case'].removeprefix('tara ')}"
        checks += [
            speed.at_most(f"{name}, operations that differ between N = 0 and N = 32", row["different"], 0),
            speed.at_most(f"{name}, FLOPs of N = 32 beyond N = 0", extra, 0),
        ]
    # rows of an older result file, from before `ratios`, have only medians
    many, none = (ours[count].get("ratios", ours[count]["ratio"][:1]) for count in (max(ours), 0))
    most = median(one / other for one, other in zip(many, none, strict=True))
    name = f"{family}, cross_kv, step of N = {max(ours)} over N = 0, inside the A/A interval"
    checks.append(check(name, round(most, 4), f"{low} to {high}", low <= most <= high))
    for row in speed.rows_where(steps, case="tara attention"):
        name = f"{family}, attention, N = {row['adapters']}, step over untouched"
        checks.append(speed.at_most(name, row["ratio"][0], 1.02))
    for row in speed.rows_where(rows, part=BATCH, case="tara cross_kv"):
        name = f"{family}, batch of 8 adapter sets over batch of 8 with none"
        checks.append(speed.at_most(name, row["ratio"][0], 1.02))
    return checks


ROUNDS = {"sd15": 7, "sdxl": 4}
BATCH_ROUNDS = 2  # far from its bound, and eight images one by one take long
COUNTS = {"sd15": Counts(published=(1, 2, 8)), "sdxl": Counts(published=(1, 8))}


def main() -> None:
    """The command line: each family runs in a process of its own."""
    args = speed.parse_arguments(__doc__)
    torch.set_num_threads(1)
    for family in [args.family] if args.family else list(speed.SHAPES):
        own = speed.alone(measure, family, speed.SHAPES[family], args.device, ROUNDS[family], COUNTS[family])
        rows = speed.merged(args.out, own)
        checks = [one for measured in speed.families_of(rows) for one in checks_of(measured, _of(measured, rows))]
        if args.device == "cpu":
            rows.append(speed.skipped(STEP, "on an NVIDIA GPU", speed.NO_GPU))
        speed.write(args.out, rows, checks, args.device)


def _of(family: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row.get("family") == family]


if __name__ == "__main__":
    main()
