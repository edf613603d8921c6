"""The flags that the generating commands share, and the request made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tara.errors import TaraError
from tara.families.settings import BaseSettings
from tara.inference.composers import composer_named
from tara.inference.provenance import (
    FoundRegions,
    Provenance,
    UsedFile,
    png_with_provenance,
    read_provenance,
    relocated,
    used_file,
)
from tara.inference.settings import GenerationSettings
from tara.storage.validation import build

if TYPE_CHECKING:
    from PIL import Image

    from tara.families.settings import ExecutionSettings
    from tara.inference.active_adapter import ActiveAdapters
    from tara.inference.confining import ImageRegions
    from tara.inference.pipeline import Pipeline
    from tara.inference.request import GenerationRequest

MOST_SEEDS = 10_000
DEFAULT_SEEDS = (0, 1, 2, 3)
Adapters = Annotated[
    tuple[str, ...],
    Parameter(
        name=("--adapter", "-a"),
        negative=(),
        show_default=False,
        help="Adapter file, or OWNER/NAME on the hub; once per adapter. Options follow a colon: FILE:0.8 sets the "
        "weight, FILE:weight=0.8,rare_word=xlo,class_word=dog,global=0.5,alpha=32 sets every option",
    ),
]
Seeds = Annotated[str | None, Parameter(help="Seeds, one image each: 7, 0-3 or 0,2,5-9 [default: 0-3]")]
Composers = Annotated[str, Parameter(help="Composers to compare, such as tara,sum")]
Device = Annotated[str | None, Parameter(help="cuda, mps or cpu [default: the best one found]")]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request with what its images remember: the base, and the files that they depend on."""

    request: GenerationRequest
    base: BaseSettings
    adapters: tuple[UsedFile, ...]
    inputs: tuple[UsedFile, ...] = ()

    def provenance(self, seed: int, **changes: Any) -> Provenance:
        """How the image of a seed is made; ``changes`` are settings that differ from the request's."""
        return Provenance(
            prompt=self.request.prompt,
            seed=seed,
            adapters=self.adapters,
            inputs=self.inputs,
            base=self.base,
            settings=self.request.settings.model_copy(update=changes),
        )

    def settings(self, **more: Any) -> dict[str, Any]:
        """Everything that the images depend on, by name, for `tara.storage.outputs.output_folder`."""
        return made_with(self.provenance(0)) | {"seeds": self.request.seeds} | more

    def png(self, image: Image.Image, seed: int, regions: ImageRegions | None = None, **changes: Any) -> bytes:
        """An image as a PNG file that holds its provenance."""
        provenance = self.provenance(seed, **changes)
        if regions is not None:
            cells = tuple(map(tuple, regions.labels.tolist()))
            provenance = provenance.model_copy(update={"regions": FoundRegions(words=regions.words, cells=cells)})
        return png_with_provenance(image, provenance)


def asked_for(
    prompt: str | None,
    adapters: tuple[str, ...],
    seeds: str | None,
    source: Path | None,
    base: dict[str, Any],
    settings: dict[str, Any],
) -> Asked:
    """Put together what the flags say and what the image to be repeated says; flags win.

    Raises:
        TaraError: for what can be seen to be wrong before the base is loaded.
    """
    from tara.adapters.formats.peft_config import config_beside
    from tara.inference.request import GenerationRequest

    earlier = relocated(read_provenance(source), source) if source else None
    if earlier:
        base = earlier.base.model_dump() | base
        settings = earlier.settings.model_dump() | settings
        adapters = adapters or tuple(file.given for file in earlier.adapters)
    text = prompt if prompt is not None else (earlier.prompt if earlier else "")
    if not text.strip():
        raise TaraError('There is no prompt. Write it after the command, such as "a xlo dog on a beach".')
    chosen, on_base = build(GenerationSettings, settings), build(BaseSettings, base)
    active, files = loaded(adapters)
    scales = [config_beside(Path(file.path)) for file in files]  # a PEFT folder keeps them in a file of their own
    masks = [Path(region.partition("=")[2]) for region in chosen.region]
    masks = [path for path in masks if path.is_file()]
    inputs = tuple(used_file(path) for path in (chosen.image, chosen.mask, *masks, *scales) if isinstance(path, Path))
    if earlier:
        _check_unchanged(earlier, files + inputs)
    wanted = DEFAULT_SEEDS if earlier is None else (earlier.seed,)
    request = build(
        GenerationRequest,
        {
            "prompt": text,
            "adapters": active,
            "seeds": wanted if seeds is None else parse_seeds(seeds),
            "settings": chosen,
        },
    )
    return Asked(request=request, base=on_base, adapters=files, inputs=inputs)


def made_with(provenance: Provenance) -> dict[str, Any]:
    """What images that differ in their seeds alone depend on, by name."""
    facts = provenance.model_dump(mode="json", exclude={"seed", "tara_version", "base", "settings"})
    return facts | provenance.base.model_dump(mode="json") | provenance.settings.model_dump(mode="json")


def pipeline_for(base: BaseSettings, device: str | None, execution: ExecutionSettings | None = None) -> Pipeline:
    """The pipeline of a command; the libraries' own bars stay off."""
    from tara.cli.progress import only_our_bars
    from tara.inference.pipeline import Pipeline

    only_our_bars()
    return Pipeline(device=device, **base.model_dump(), **({} if execution is None else execution.model_dump()))


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from `7`, `0-3` or `0,2,5-9`, in the order given, each once.

    Raises:
        TaraError: for anything else.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise TaraError(f"--seeds '{text}' is not a list of seeds. Write it like 7, 0-3 or 0,2,5-9.")
        start, stop = int(first), int(last) if dash else int(first)
        if start > stop:
            raise TaraError(f"--seeds '{text}': '{part.strip()}' is not a range. Write the smaller number first.")
        if stop >= 2**63:
            raise TaraError(f"--seeds '{text}': '{part.strip()}' is too large. Seeds are less than 2^63.")
        if stop - start + len(seeds) >= MOST_SEEDS:
            raise TaraError(f"--seeds '{text}' asks for more than {MOST_SEEDS} images. Ask for fewer at a time.")
        seeds.extend(range(start, stop + 1))
    return tuple(dict.fromkeys(seeds))


def parse_composers(text: str) -> tuple[str, ...]:
    """Composers from `tara,sum`, in the order given, each once.

    Raises:
        TaraError: for one that does not exist.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        composer_named(name)
    return names


def loaded(specs: Sequence[str]) -> tuple[ActiveAdapters, tuple[UsedFile, ...]]:
    """Adapters as `FILE[:key=value,...]` names them, and what an image remembers of their files."""
    from tara.inference.active_adapter import parse_adapter

    return tuple(parse_adapter(spec) for spec in specs), tuple(_used(spec) for spec in specs)


def _used(spec: str) -> UsedFile:
    """The weights file of `FILE[:key=value,...]`; one on the hub is known by its name there."""
    from tara.adapters.formats.reading import lora_file
    from tara.inference.active_adapter import split_options

    name, _ = split_options(spec)
    used = used_file(lora_file(Path(name)), spec)
    return used if Path(name).exists() else used.model_copy(update={"path": name})


def _check_unchanged(earlier: Provenance, now: Sequence[UsedFile]) -> None:
    """Refuse to repeat an image with a file that has the same name and another content."""
    then = {file.path: file.sha256 for file in (*earlier.adapters, *earlier.inputs)}
    for file in now:
        if then.get(file.path, file.sha256) != file.sha256:
            raise TaraError(
                f"'{file.path}' has changed since this image was made with it. Restore the old file, or generate a "
                "new image without --from."
            )
