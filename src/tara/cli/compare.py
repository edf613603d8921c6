"""`tara compare`: the same prompt, adapters and seeds through every composer, on one sheet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tara.cli.generate import (
    FLAGS,
    Adapters,
    Composers,
    Device,
    Order,
    Prompt,
    Seeds,
    check_before_the_base,
    order_of,
    parse_composers,
    remembering_png,
    sampling_values,
)
from tara.cli.options import Typed, given, with_flags
from tara.cli.progress import only_our_bars, progress
from tara.cli.terminal import say
from tara.errors import TaraError
from tara.inference.composers import COMPOSERS
from tara.inference.provenance import DrawingSettings
from tara.storage.files import atomic_write, check_writable
from tara.storage.lock import claimed

if TYPE_CHECKING:
    from tara.analysis.comparison import Compared
    from tara.inference.pipeline import Pipeline
    from tara.report.page import Table

ALL = ",".join(COMPOSERS)
Pictures = Mapping[str, Sequence["Compared"]]


def _compare(
    prompt: Prompt = None,
    /,
    *,
    adapter: Adapters = (),
    seeds: Seeds = None,
    composers: Composers = ALL,
    out: Annotated[Path, Parameter(help="Folder to write to")] = Path("compare"),
    device: Device = None,
    typed: Typed = "",
    **values: Any,
) -> None:
    """Draw the same prompt, adapters and seeds through every composer, side by side, and say what each costs.

    `tara compare "a xlo dog and a szn cat on a beach" -a rex.safetensors -a tom.safetensors`
    """
    from tara.inference.drawing import pipeline_of

    order = order_of(prompt, adapter, seeds, None, given(DrawingSettings, values, FLAGS))
    names = parse_composers(composers)
    if not order.active_adapters:
        raise TaraError("There is nothing to compose. Name each adapter: --adapter rex.safetensors.")
    check_before_the_base(order, names)
    sampling_values(order)
    check_writable(out)
    only_our_bars()
    with claimed(out):  # before the base, which may take minutes to load
        pipeline = pipeline_of(order.settings, device)
        pictures = _drawn(pipeline, order, names, out)
        _write(out, pipeline, order, pictures, typed)


compare = with_flags(_compare, {DrawingSettings: FLAGS}, ["Pictures"])


def _drawn(pipeline: Pipeline, order: Order, names: Sequence[str], out: Path) -> dict[str, list[Compared]]:
    """Draw behind a progress bar; each picture is written as soon as it is there."""
    from tara.analysis.comparison import compared

    pictures: dict[str, list[Compared]] = {name: [] for name in names}
    settings = sampling_values(order)
    del settings["composer"]
    with progress("Comparing", len(names) * len(order.seeds)) as advance:

        def on_step(step: Any) -> None:
            advance(sum(map(len, pictures.values())) + step.step / step.steps, "")

        for picture in compared(
            pipeline, order.prompt, order.active_adapters, order.seeds, names, on_step=on_step, **settings
        ):
            drawn = order.settings.model_copy(update={"composer": picture.composer})
            atomic_write(out / picture.path, remembering_png(picture, replace(order, settings=drawn)))
            pictures[picture.composer].append(picture)
    return pictures


def _write(out: Path, pipeline: Pipeline, order: Order, pictures: Pictures, typed: str) -> None:
    """Write the sheet, the page and the figures, and print the table."""
    from tara.analysis.comparison import clock_of, figures, grid, table
    from tara.report.page import contact_sheet, page, png_bytes
    from tara.training.run.folder import versions

    found, shown = (
        figures(order.prompt, order.active_adapters, pictures),
        grid(order.prompt, order.active_adapters, pictures),
    )
    results = {
        "prompt": order.prompt,
        "seeds": order.seeds,
        "adapters": [file.model_dump() for file in order.used],
        "settings": order.settings.model_dump(mode="json", exclude={"composer"}),
        "clock": clock_of(pipeline.backbone.device)[0],
        "composers": found,
        "versions": versions(pipeline.backbone.device),
        "command": typed,
    }
    html = page(
        title=order.prompt,
        lead="One prompt, the same adapters and the same seeds, drawn by every composer.",
        grids=[shown],
        tables=[table(found)],
        command=typed,
    )
    atomic_write(out / "sheet.png", png_bytes(contact_sheet(shown)))
    atomic_write(out / "results.json", (json.dumps(results, indent=2, ensure_ascii=False) + "\n").encode())
    atomic_write(out / "index.html", html.encode())
    _show(table(found))
    say(f"Look at {out / 'index.html'}, or at {out / 'sheet.png'}.")


def _show(costs: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(*costs.headings, box=box.SIMPLE_HEAD)
    for row in costs.rows:
        shown.add_row(*row)
    Console().print(shown)
