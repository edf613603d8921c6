"""The same prompt, adapters and seeds through several composers: pictures side by side, and what each one costs."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from PIL import Image

from tara.inference.composers import COMPOSERS, ActiveAdapters
from tara.inference.pipeline import Pipeline, SamplingStep
from tara.report.page import Grid, Row, Table, shrunk

REFERENCE = "none"
"""The composer whose time is 1."""
SHOWN_SEEDS, SHOWN_SIDE = 8, 384  # pictures in a row of the sheet, and their longest side in pixels
NOTE = (
    "U-Net evaluations: for one picture, each of all its rows, the prompt's and the guiding one. Time ratio: the "
    f"median over the seeds of a picture's time relative to the same seed's with '{REFERENCE}', drawn one by one, "
    "composer after composer, in one process. The first seed, which also pays for what is prepared once, does not "
    "count."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """One picture: by which composer, and what it cost."""

    composer: str
    seed: int
    image: Image.Image
    evaluations: int
    """How often the U-Net was evaluated."""
    seconds: float
    """By the clock of `clock_of`."""

    @property
    def path(self) -> str:
        """Where it lies in the output folder."""
        return f"{self.composer}/seed-{self.seed:04d}.png"


def compared(
    pipeline: Pipeline,
    prompt: str,
    active_adapters: ActiveAdapters,
    seeds: Sequence[int],
    composers: Sequence[str],
    *,
    on_step: Callable[[SamplingStep], object] | None = None,
    **settings: Any,
) -> Iterator[Compared]:
    """Draw every seed with every composer, one picture at a time: all composers' first seed, then all their second.

    Args:
        studio: the base.
        prompt, uses, seeds: what is drawn.
        composers: names in `tara.inference.composers.COMPOSERS`.
        on_step: called after each denoising step; its record counts the pictures of one composer.
        settings: further fields of `tara.inference.stock_pipelines.SamplingSettings`.

    Raises:
        TaraError: as `Studio.stream`.
    """
    _, clock = clock_of(pipeline.base.device)
    # a stream gives the U-Net back after each picture, so that several can take turns on one base
    streams = {
        name: pipeline.stream(prompt, active_adapters, seeds, composer=name, batch_size=1, on_step=on_step, **settings)
        for name in composers
    }
    for seed in seeds:
        for name, stream in streams.items():
            with _counted(pipeline.base.unet) as evaluations:
                begun = clock()
                image = next(stream).image
                seconds = clock() - begun
            yield Compared(composer=name, seed=seed, image=image, evaluations=len(evaluations), seconds=seconds)


def clock_of(device: torch.device) -> tuple[str, Callable[[], float]]:
    """The clock for a device, with its name: CPU time on a CPU, where something else may be running; wall time else."""
    return ("cpu", time.process_time) if device.type == "cpu" else ("wall", time.perf_counter)


@contextmanager
def _counted(unet: Any) -> Generator[list[None]]:
    """An entry for each evaluation of the U-Net in a ``with`` block: its first convolution runs once in each."""
    passes: list[None] = []

    def on_pass(*_: object) -> None:
        passes.append(None)

    hook = unet.conv_in.register_forward_hook(on_pass)
    try:
        yield passes
    finally:
        hook.remove()


def figures(
    prompt: str, active_adapters: ActiveAdapters, pictures: Mapping[str, Sequence[Compared]]
) -> dict[str, dict[str, Any]]:
    """What ``results.json`` says of each composer.

    ``time_ratio`` is None where `REFERENCE` was not drawn, and with a single seed, whose time is mostly of what
    is prepared once.
    """
    return {
        name: {
            "meaning": COMPOSERS[name].meaning,
            "prompt": COMPOSERS[name].prompt(prompt, active_adapters),
            "unet_evaluations": drawn[0].evaluations,
            "time_ratio": _time_ratio(drawn, pictures.get(REFERENCE, ())),
            "seconds": [round(one.seconds, 4) for one in drawn],
            "pictures": [one.path for one in drawn],
        }
        for name, drawn in pictures.items()
    }


def _time_ratio(drawn: Sequence[Compared], reference: Sequence[Compared]) -> float | None:
    if len(reference) < 2:
        return None
    ratios = [one.seconds / other.seconds for one, other in zip(drawn, reference, strict=True)]
    return round(median(ratios[1:]), 3)


def grid(prompt: str, active_adapters: ActiveAdapters, pictures: Mapping[str, Sequence[Compared]]) -> Grid:
    """One row per composer, one column per seed, of the first `SHOWN_SEEDS`."""
    shown = {name: drawn[:SHOWN_SEEDS] for name, drawn in pictures.items()}
    return Grid(
        title=prompt,
        columns=tuple(f"seed {one.seed}" for one in next(iter(shown.values()))),
        rows=tuple(
            Row(label=name, images=tuple(shrunk(one.image, SHOWN_SIDE) for one in drawn))
            for name, drawn in shown.items()
        ),
        note=" ".join(filter(None, (_left_out(pictures), _caution(active_adapters, list(pictures))))),
    )


def _left_out(pictures: Mapping[str, Sequence[Compared]]) -> str:
    count = len(next(iter(pictures.values())))
    return f"The first {SHOWN_SEEDS} of {count} seeds." if count > SHOWN_SEEDS else ""


def _caution(active_adapters: ActiveAdapters, composers: Sequence[str]) -> str:
    """What a reader must know before blaming a composer for adapters that were not made for it."""
    masked = [active.name for active in active_adapters if active.adapter.card.settings.get("token_mask")]
    plain = [name for name in composers if COMPOSERS[name].everywhere]
    if not masked or not plain:
        return ""
    return (
        f"{', '.join(masked)} learned with token masks, each on its own word alone; {', '.join(plain)} let adapters "
        "act everywhere. To be fair to them, compare with plain LoRAs too: tara train --no-token-mask --alignment-loss off."
    )


def table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """The costs of `figures` as a table."""
    return Table(
        headings=("composer", "U-Net evaluations", "time ratio", "what it does"),
        rows=tuple(
            (name, str(of["unet_evaluations"]), _format_ratio(of["time_ratio"]), of["meaning"])
            for name, of in found.items()
        ),
        title="What a picture costs",
        note=NOTE,
    )


def _format_ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"
