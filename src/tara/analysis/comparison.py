"""Runs one request with several composers: images side by side, and the cost of each composer."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from PIL import Image

from tara.families.base import Base
from tara.inference.composers import COMPOSERS
from tara.inference.pipeline import OnStep, Pipeline
from tara.inference.request import GenerationRequest
from tara.report.grid import Grid, Row, Table
from tara.storage.outputs import image_name

REFERENCE = "none"  # time ratios are relative to this composer
SHOWN_SEEDS = 8  # most images in a row of the sheet
NOTE = (
    "Network evaluations are for one image; each evaluates the conditional and the unconditional row. "
    f"Time: the median over the seeds of an image's time relative to that of '{REFERENCE}' with the same seed. Images "
    "are generated one at a time, with the composers in turn, in one process. The first seed is left out, because its "
    "time includes the preparation."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ComposedImage:
    """An image by one composer, and its cost: network evaluations, and seconds by the clock of `clock_of`."""

    composer: str
    number: int
    seed: int
    image: Image.Image
    evaluations: int
    seconds: float

    @property
    def path(self) -> str:
        """Its file in the output folder."""
        return f"{self.composer}/{image_name(self.number, self.seed)}"


Composed = Mapping[str, Sequence[ComposedImage]]
"""The images of each composer, in the order of the seeds."""


def with_composer(request: GenerationRequest, composer: str) -> GenerationRequest:
    """The same request for another composer."""
    return request.model_copy(update={"settings": request.settings.model_copy(update={"composer": composer})})


def compare_composers(
    pipeline: Pipeline, request: GenerationRequest, composers: Sequence[str], on_step: OnStep | None = None
) -> Iterator[ComposedImage]:
    """Generate a request with every composer, one image at a time: all composers per seed, seed by seed.

    The request's own composer is ignored. ``on_step`` gets a record that counts the images of one composer.

    Raises:
        TaraError: as `Pipeline.generate`.
    """
    _, clock = clock_of(pipeline.base.device)
    # a stream restores the base after each image, so that several can take turns on one base
    streams = [
        (name, pipeline.generate([with_composer(request, name)], batch_size=1, on_step=on_step)) for name in composers
    ]
    for number, seed in enumerate(request.seeds, 1):
        for name, stream in streams:
            with _counted(pipeline.base) as evaluations:
                begun = clock()
                image = next(stream).image
                seconds = clock() - begun
            yield ComposedImage(
                composer=name, number=number, seed=seed, image=image, evaluations=evaluations.count, seconds=seconds
            )


def clock_of(device: torch.device) -> tuple[str, Callable[[], float]]:
    """The clock for a device, with its name: CPU time on a CPU, where other programs may run; wall time elsewhere."""
    return ("cpu", time.process_time) if device.type == "cpu" else ("wall", time.perf_counter)


@dataclass
class _Evaluations:
    count: int = 0


@contextmanager
def _counted(base: Base) -> Generator[_Evaluations]:
    """Count the network evaluations in a ``with`` block, by the calls of the first text layer (one per evaluation)."""
    evaluations = _Evaluations()

    def count(*_: object) -> None:
        evaluations.count += 1

    hook = base.layer(base.text_layers[0]).register_forward_hook(count)
    try:
        yield evaluations
    finally:
        hook.remove()


def costs(request: GenerationRequest, images: Composed) -> dict[str, dict[str, Any]]:
    """Each composer's entry in ``results.json``.

    ``time_ratio`` is None without images of `REFERENCE`, or with a single seed, because its time includes preparation.
    """
    return {
        name: {
            "description": COMPOSERS[name].description,
            "prompt": COMPOSERS[name].prompt(request.prompt, request.adapters),
            "evaluations": composed[0].evaluations,
            "time_ratio": _time_ratio(composed, images.get(REFERENCE, ())),
            "seconds": [round(image.seconds, 4) for image in composed],
            "images": [image.path for image in composed],
        }
        for name, composed in images.items()
    }


def _time_ratio(images: Sequence[ComposedImage], reference: Sequence[ComposedImage]) -> float | None:
    if len(reference) < 2:
        return None
    ratios = [image.seconds / other.seconds for image, other in zip(images, reference, strict=True)]
    return round(median(ratios[1:]), 3)


def grid(request: GenerationRequest, images: Composed) -> Grid:
    """One row per composer, one column per seed, of the first `SHOWN_SEEDS`."""
    shown, count = request.seeds[:SHOWN_SEEDS], len(request.seeds)
    note = f"The first {SHOWN_SEEDS} of {count} seeds." if count > SHOWN_SEEDS else ""
    # otherwise a reader would blame the composer for adapters that were not trained for it
    masked = [active.name for active in request.adapters if active.adapter.trained_with_token_mask]
    plain = [name for name in images if not COMPOSERS[name].masked]
    if masked and plain:
        note += (
            f" {', '.join(masked)} learned with token masks, each on its own word; {', '.join(plain)} let adapters act "
            "on all tokens. Compare with plain LoRAs too: tara train --no-token-mask --alignment-loss off."
        )
    rows = tuple(
        Row(
            label=f"{name}: {COMPOSERS[name].description}",
            images=tuple(image.image for image in composed[:SHOWN_SEEDS]),
        )
        for name, composed in images.items()
    )
    return Grid(title=request.prompt, columns=tuple(f"seed {seed}" for seed in shown), rows=rows, note=note.strip())


def table(costs: Mapping[str, Mapping[str, Any]]) -> Table:
    """The result of `costs` as a table."""
    rows: list[tuple[str, ...]] = []
    for name, cost in costs.items():
        ratio = "" if cost["time_ratio"] is None else f"{cost['time_ratio']:.2f}"
        rows.append((name, str(cost["evaluations"]), ratio, cost["description"]))
    headings = ("composer", "network evaluations", f"time relative to '{REFERENCE}'", "what it does")
    return Table(headings=headings, rows=tuple(rows), title="Cost of an image", note=NOTE)
