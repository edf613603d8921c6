"""`tara generate`: generates images from a prompt, adapters and seeds, and stores their provenance."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tara.cli.options import settings_from, with_options
from tara.cli.requests import AdapterFolder, Adapters, Device, Seeds, pipeline_for, request_from_flags
from tara.cli.terminal import progress, say
from tara.errors import TaraError
from tara.families.settings import BaseSettings, ExecutionSettings
from tara.inference.provenance import RequestProvenance, png_with_provenance, was_made_as
from tara.inference.settings import GenerationSettings
from tara.storage.files import atomic_write, check_writable
from tara.storage.lock import folder_lock
from tara.storage.outputs import SHEET, image_name, next_number

if TYPE_CHECKING:
    from tara.inference.pipeline import Pipeline

MOST_SHOWN = 64


@with_options({BaseSettings: "Base", GenerationSettings: "Images", ExecutionSettings: "Speed and memory"})
def generate(
    prompt: Annotated[str | None, Parameter(help="Prompt, with the adapters' rare words in it")] = None,
    /,
    *,
    adapter: Adapters = (),
    adapters: AdapterFolder = None,
    seeds: Seeds = None,
    out: Annotated[Path, Parameter(help="Output folder")] = Path("out"),
    from_: Annotated[
        Path | None, Parameter(name="--from", help="Generate this image again; other flags override its settings")
    ] = None,
    batch_size: Annotated[int, Parameter(help="Images generated at a time")] = 4,
    device: Device = None,
    **values: Any,
) -> None:
    """Generate images with any number of adapters in one prompt."""
    if batch_size < 1:
        raise TaraError(f"--batch-size is {batch_size}. Give 1 or more.")
    provenance = request_from_flags(prompt, adapter, seeds, values, from_, adapters)
    provenance.request.check()
    check_writable(out)
    execution = settings_from(ExecutionSettings, values)
    wanted = provenance.request.seeds
    with folder_lock(out):
        files = {seed: path for seed in wanted if (path := _existing(provenance, seed, out))}
        existing = len(files)
        if missing := tuple(seed for seed in wanted if seed not in files):
            pipeline, first = pipeline_for(provenance.base, device, execution), next_number(out)
            paths = {seed: out / image_name(number, seed) for number, seed in enumerate(missing, first)}
            write_images(pipeline, provenance, paths, batch_size, out / "regions")
            files |= paths
        sheet = _write_sheet(provenance, [files[seed] for seed in wanted], out)
    count = f"{len(files)} images" if len(files) > 1 else "1 image"
    names = " to ".join(dict.fromkeys((min(files.values()).name, max(files.values()).name)))
    say(f"{count}{f' ({existing} existed already)' if existing else ''} in {out}: {names}")
    if sheet is not None:
        say(f"Contact sheet: {sheet}")


def write_images(
    pipeline: Pipeline,
    provenance: RequestProvenance,
    paths: Mapping[int, Path],
    batch_size: int = 4,
    overlays: Path | None = None,
) -> None:
    """Generate the image of each seed and write it to the seed's path, its regions into the folder of overlays."""
    from tara.report.overlays import regions_over

    request = provenance.request.model_copy(update={"seeds": tuple(paths)})
    with progress("Generating", len(paths)) as advance:
        for generated in pipeline.generate(
            [request], batch_size=batch_size, on_step=lambda step: advance(step.fraction * step.images, "")
        ):
            path = paths[generated.seed]
            atomic_write(
                path, png_with_provenance(generated.image, provenance.of_image(generated.seed, generated.regions))
            )
            if overlays and generated.regions:
                overlay = regions_over(generated.image, generated.regions.labels.numpy(), generated.regions.words)
                atomic_write(overlays / path.name, overlay.save)


def _existing(provenance: RequestProvenance, seed: int, out: Path) -> Path | None:
    """The folder's file of this very image, from an earlier command."""
    wanted = provenance.of_image(seed)
    return next((path for path in sorted(out.glob(f"*-seed{seed}.png")) if was_made_as(path, wanted)), None)


def _write_sheet(provenance: RequestProvenance, files: Sequence[Path], out: Path) -> Path | None:
    """One image of several, numbered as they are; an equal one of an earlier command is kept."""
    from tara.report.grid import wrapped
    from tara.report.sheet import contact_sheet
    from tara.storage.images import read_image

    if len(files) == 1:
        return None
    labels = [f"seed {seed}" for seed in provenance.request.seeds[:MOST_SHOWN]]
    images = [read_image(path) for path in files[:MOST_SHOWN]]
    buffer = io.BytesIO()
    contact_sheet(wrapped(images, labels, title=provenance.request.prompt)).save(buffer, format="PNG")
    sheet = buffer.getvalue()
    for path in out.glob(f"*-{SHEET}"):
        if path.stat().st_size == len(sheet) and path.read_bytes() == sheet:
            return path
    path = out / f"{next_number(out):04d}-{SHEET}"
    atomic_write(path, sheet)
    return path
