"""`tara generate`: generates images from a prompt, adapters and seeds, and stores their provenance."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tara.cli.options import given, with_flags
from tara.cli.progress import progress
from tara.cli.requests import Adapters, Asked, Device, Seeds, asked_for, pipeline_for
from tara.cli.terminal import say
from tara.errors import TaraError
from tara.families.settings import BaseSettings, ExecutionSettings
from tara.inference.provenance import was_made_as
from tara.inference.settings import GenerationSettings
from tara.storage.files import atomic_write, check_writable
from tara.storage.lock import folder_lock
from tara.storage.outputs import SHEET, image_name, next_number
from tara.storage.validation import build

if TYPE_CHECKING:
    from PIL import Image

    from tara.inference.confining import ImageRegions

MOST_SHOWN = 64


def _generate(
    prompt: Annotated[str | None, Parameter(help="Prompt, with the adapters' rare words in it")] = None,
    /,
    *,
    adapter: Adapters = (),
    seeds: Seeds = None,
    out: Annotated[Path, Parameter(help="Output folder")] = Path("out"),
    from_: Annotated[
        Path | None, Parameter(name="--from", help="Generate this image again; other flags override its settings")
    ] = None,
    batch_size: Annotated[int, Parameter(help="Images generated at a time; does not change the images")] = 4,
    device: Device = None,
    **values: Any,
) -> None:
    """Generate images with any number of adapters in one prompt."""
    if batch_size < 1:
        raise TaraError(f"--batch-size is {batch_size}. Give 1 or more.")
    asked = asked_for(prompt, adapter, seeds, from_, given(BaseSettings, values), given(GenerationSettings, values))
    asked.request.check()
    check_writable(out)
    execution = build(ExecutionSettings, given(ExecutionSettings, values))
    seeds_wanted = asked.request.seeds
    with folder_lock(out):
        files = {seed: path for seed in seeds_wanted if (path := _existing(asked, seed, out))}
        existing, missing = len(files), tuple(seed for seed in seeds_wanted if seed not in files)
        if missing:
            files |= _write_images(asked, missing, out, batch_size, device, execution)
        sheet = _write_sheet(asked, [files[seed] for seed in seeds_wanted], out)
    count = f"{len(files)} images" if len(files) > 1 else "1 image"
    say(f"{count}{f' ({existing} existed already)' if existing else ''} in {out}: {_names(files.values())}")
    if sheet is not None:
        say(f"All in one: {sheet}")


generate = with_flags(
    _generate, {BaseSettings: "Base", GenerationSettings: "Images", ExecutionSettings: "Speed and memory"}
)


def _write_images(
    asked: Asked, seeds: tuple[int, ...], out: Path, batch_size: int, device: str | None, execution: ExecutionSettings
) -> dict[int, Path]:
    """Generate an image of each seed; each gets the folder's next number."""
    pipeline, files = pipeline_for(asked.base, device, execution), dict[int, Path]()
    request, first = asked.request.model_copy(update={"seeds": seeds}), next_number(out)
    with progress("Generating", len(seeds)) as advance:
        made = pipeline.generate(
            [request], batch_size=batch_size, on_step=lambda step: advance(step.fraction * step.images, "")
        )
        for number, one in enumerate(made, first):
            files[one.seed] = out / image_name(number, one.seed)
            atomic_write(files[one.seed], asked.png(one.image, one.seed, one.regions))
            if one.regions is not None:
                _write_overlay(out / "regions" / files[one.seed].name, one.image, one.regions)
    return files


def _write_overlay(path: Path, image: Image.Image, regions: ImageRegions) -> None:
    from tara.report.regions import regions_over

    path.parent.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    regions_over(image, regions.labels.numpy(), regions.words).save(buffer, format="PNG")
    atomic_write(path, buffer.getvalue())


def _existing(asked: Asked, seed: int, out: Path) -> Path | None:
    """The folder's file of this very image, from an earlier command."""
    return next(
        (path for path in sorted(out.glob(f"*-seed{seed}.png")) if was_made_as(path, asked.provenance(seed))), None
    )


def _names(files: Iterable[Path]) -> str:
    first, *others = sorted(path.name for path in files)
    return f"{first} to {others[-1]}" if others else first


def _write_sheet(asked: Asked, files: Sequence[Path], out: Path) -> Path | None:
    """One image of several, numbered as they are; an equal one of an earlier command is kept."""
    from tara.report.grid import wrapped
    from tara.report.sheet import contact_sheet
    from tara.storage.images import read_image

    if len(files) == 1:
        return None
    labels = [f"seed {seed}" for seed in asked.request.seeds[:MOST_SHOWN]]
    images = [read_image(path) for path in files[:MOST_SHOWN]]
    buffer = io.BytesIO()
    contact_sheet(wrapped(images, labels, title=asked.request.prompt)).save(buffer, format="PNG")
    sheet = buffer.getvalue()
    for path in out.glob(f"*-{SHEET}"):
        if path.stat().st_size == len(sheet) and path.read_bytes() == sheet:
            return path
    path = out / f"{next_number(out):04d}-{SHEET}"
    atomic_write(path, sheet)
    return path
