"""`tara compare`: the same prompt, adapters and seeds with every composer, on one sheet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tara.cli.options import CommandLine, Overwrite, with_options
from tara.cli.requests import (
    AdapterFolder,
    Adapters,
    Composers,
    Device,
    Seeds,
    parse_composers,
    pipeline_for,
    request_from_flags,
)
from tara.cli.terminal import progress, say
from tara.errors import TaraError
from tara.families.settings import BaseSettings
from tara.inference.composers import COMPOSERS
from tara.inference.provenance import RequestProvenance, png_with_provenance
from tara.inference.settings import GenerationSettings
from tara.report.page import PAGE
from tara.storage.files import atomic_write
from tara.storage.outputs import SHEET, output_folder

if TYPE_CHECKING:
    import torch

    from tara.analysis.comparison import ComposedImage
    from tara.inference.pipeline import Pipeline

ALL = ",".join(COMPOSERS)
RESULTS = "results.json"


@with_options({BaseSettings: "Base", GenerationSettings: "Images"}, without=("composer",))
def compare(
    prompt: Annotated[str | None, Parameter(help="Prompt, with the adapters' rare words in it")] = None,
    /,
    *,
    adapter: Adapters = (),
    adapters: AdapterFolder = None,
    seeds: Seeds = None,
    composers: Composers = ALL,
    out: Annotated[Path, Parameter(help="Output folder")] = Path("compare"),
    overwrite: Overwrite = False,
    device: Device = None,
    command_line: CommandLine = "",
    **values: Any,
) -> None:
    """Generate the same prompt, adapters and seeds with every composer, side by side, and report what each costs."""
    from tara.analysis.comparison import with_composer

    provenance, names = request_from_flags(prompt, adapter, seeds, values, folder=adapters), parse_composers(composers)
    if not adapter:
        raise TaraError("There are no adapters. Give each one with --adapter, such as --adapter rex.safetensors.")
    for name in names:
        with_composer(provenance.request, name).check()
    wanted = provenance.by_name() | {"composers": names}
    # before the base, which may take minutes to load
    with output_folder(out, wanted, SHEET, RESULTS, PAGE, overwrite=overwrite) as finished:
        if not finished:
            pipeline = pipeline_for(provenance.base, device)
            images = _generate(pipeline, provenance, names, out)
            _write(out, provenance, images, pipeline.base.device, command_line)
    already = "These images exist already. " if finished else ""
    say(f"{already}Look at {out / PAGE}, or at {out / SHEET}.")


def _generate(
    pipeline: Pipeline, provenance: RequestProvenance, names: Sequence[str], out: Path
) -> dict[str, list[ComposedImage]]:
    """All images, each written as soon as it is there."""
    from tara.analysis.comparison import compare_composers

    images: dict[str, list[ComposedImage]] = {name: [] for name in names}
    with progress("Comparing", len(names) * len(provenance.request.seeds)) as advance:

        def on_step(step: Any) -> None:
            advance(sum(map(len, images.values())) + step.step / step.steps, "")

        for image in compare_composers(pipeline, provenance.request, names, on_step):
            of_image = provenance.of_image(image.seed, composer=image.composer)
            atomic_write(out / image.path, png_with_provenance(image.image, of_image))
            images[image.composer].append(image)
    return images


def _write(
    out: Path,
    provenance: RequestProvenance,
    images: dict[str, list[ComposedImage]],
    device: torch.device,
    command_line: str,
) -> None:
    """Write the sheet, the page and the costs, and print the costs."""
    from tara.analysis.comparison import clock_of, costs, grid, table
    from tara.report.page import page
    from tara.report.sheet import contact_sheet
    from tara.report.versions import versions

    request = provenance.request
    by_composer, shown = costs(request, images), grid(request, images)
    costs_table = table(by_composer)
    results = {
        "prompt": request.prompt,
        "seeds": request.seeds,
        "adapters": [file.model_dump() for file in provenance.adapters],
        "settings": request.settings.model_dump(mode="json", exclude={"composer"}),
        "clock": clock_of(device)[0],
        "composers": by_composer,
        "versions": versions(device),
        "command": command_line,
    }
    lead = "One prompt, the same adapters and seeds, every composer."
    html = page(title=request.prompt, lead=lead, grids=[shown], tables=[costs_table], command=command_line)
    atomic_write(out / SHEET, contact_sheet(shown).save)
    atomic_write(out / RESULTS, (json.dumps(results, indent=2, ensure_ascii=False) + "\n").encode())
    atomic_write(out / PAGE, html.encode())
    for composer, evaluations, ratio, _ in costs_table.rows:
        relative = f", time relative to 'none': {ratio}" if ratio else ""
        say(f"{composer:>10}: {evaluations} network evaluations{relative}")
