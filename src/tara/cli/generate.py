"""`tara generate`: a prompt, adapters and seeds to images that remember how they were made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from tara.cli.options import given, with_flags
from tara.cli.progress import progress
from tara.cli.requests import Adapters, Asked, Device, Seeds, asked_for, pipeline_for
from tara.cli.terminal import say
from tara.errors import TaraError
from tara.families.settings import BaseSettings, ExecutionSettings
from tara.inference.provenance import read_provenance
from tara.inference.settings import GenerationSettings
from tara.storage.files import atomic_write, check_writable
from tara.storage.lock import claimed
from tara.storage.validation import build

MOST_SHOWN = 64


def _generate(
    prompt: Annotated[str | None, Parameter(help="Prompt, with the adapters' rare words in it")] = None,
    /,
    *,
    adapter: Adapters = (),
    seeds: Seeds = None,
    out: Annotated[Path, Parameter(help="Output folder")] = Path("out"),
    from_: Annotated[
        Path | None, Parameter(name="--from", help="Generate this image again; other flags change its settings")
    ] = None,
    batch_size: Annotated[int, Parameter(help="Images generated at a time; does not change them")] = 4,
    device: Device = None,
    **values: Any,
) -> None:
    """Generate images with any number of adapters in one prompt.

    tara generate "a xlo dog on a beach" -a rex.safetensors --base sd15

    tara generate "a xlo dog and a szn cat" -a rex.safetensors -a tom.safetensors:0.8 --base sd15 --seeds 0-7
    """
    if batch_size < 1:
        raise TaraError(f"--batch-size {batch_size} generates nothing. Give 1 or more.")
    asked = asked_for(prompt, adapter, seeds, from_, given(BaseSettings, values), given(GenerationSettings, values))
    asked.request.check()
    check_writable(out)
    execution = build(ExecutionSettings, given(ExecutionSettings, values))
    seeds_wanted = asked.request.seeds
    with claimed(out):
        missing = tuple(seed for seed in seeds_wanted if not _is_finished(asked, seed, out))
        if missing:
            _write_images(asked, missing, out, batch_size, device, execution)
        _write_sheet(out / "sheet.png", asked, out)
    count = "1 image" if len(seeds_wanted) == 1 else f"{len(seeds_wanted)} images"
    there = len(seeds_wanted) - len(missing)
    known = f" ({there} there already)" if there else ""
    say(f"{count}{known} in {out}, together in {out / 'sheet.png'}")


generate = with_flags(
    _generate, {BaseSettings: "Base", GenerationSettings: "Images", ExecutionSettings: "Speed and memory"}
)


def _write_images(
    asked: Asked, seeds: tuple[int, ...], out: Path, batch_size: int, device: str | None, execution: ExecutionSettings
) -> None:
    pipeline = pipeline_for(asked.base, device, execution)
    request = asked.request.model_copy(update={"seeds": seeds})
    with progress("Generating", len(seeds)) as advance:
        made = pipeline.generate(
            [request], batch_size=batch_size, on_step=lambda step: advance(step.fraction * step.images, "")
        )
        for one in made:
            atomic_write(_file(out, one.seed), asked.png(one.image, one.seed))


def _file(out: Path, seed: int) -> Path:
    return out / f"seed-{seed:04d}.png"


def _is_finished(asked: Asked, seed: int, out: Path) -> bool:
    """Whether the folder holds this very image, from a command that was stopped before its last one."""
    wanted = asked.provenance(seed)
    try:
        there = read_provenance(_file(out, seed))
    except TaraError:  # not there, or not whole
        return False
    return there.model_copy(update={"tara_version": wanted.tara_version}) == wanted


def _write_sheet(path: Path, asked: Asked, out: Path) -> None:
    from tara.report.grid import wrapped
    from tara.report.sheet import contact_sheet
    from tara.storage.images import read_image

    seeds = asked.request.seeds[:MOST_SHOWN]
    images = [read_image(_file(out, seed)) for seed in seeds]
    labels = [f"seed {seed}" for seed in seeds]
    atomic_write(path, contact_sheet(wrapped(images, labels, title=asked.request.prompt)).save)
