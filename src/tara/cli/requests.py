"""The flags that the generating commands share, and the request made from them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tara.cli.options import settings_from
from tara.cli.terminal import only_our_bars
from tara.errors import TaraError, nearest
from tara.families.settings import BaseSettings
from tara.inference.composers import composer_named
from tara.inference.provenance import Provenance, RequestProvenance, UsedFile, read_provenance, relocated, used_file
from tara.inference.settings import GenerationSettings
from tara.storage.validation import build

if TYPE_CHECKING:
    from tara.families.settings import ExecutionSettings
    from tara.inference.active_adapter import ActiveAdapters
    from tara.inference.pipeline import Pipeline

MOST_SEEDS = 10_000
TAG = re.compile(r"(\s*<lora:([^:<>]+)(?::([^<>]*))?>)")  # as in AUTOMATIC1111's web UI
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
AdapterFolder = Annotated[
    Path | None,
    Parameter(name="--adapters", help="Folder of NAME.safetensors for <lora:NAME:WEIGHT> in the prompt"),
]
Seeds = Annotated[str | None, Parameter(help="Seeds, one image each: 7, 0-3 or 0,2,5-9 [default: 0-3]")]
Composers = Annotated[str, Parameter(help="Composers to compare, such as tara,sum")]
Device = Annotated[str | None, Parameter(help="cuda, mps or cpu [default: the best one found]")]


def request_from_flags(
    prompt: str | None,
    adapters: Sequence[str],
    seeds: str | None,
    values: dict[str, Any],
    source: Path | None = None,
    folder: Path | None = None,
) -> RequestProvenance:
    """The request of a command; what is left out is taken from the image ``source``, if there is one.

    ``values`` are fields of `BaseSettings` and `GenerationSettings`; ``folder`` has the adapters of ``<lora:NAME:1>``.

    Raises:
        TaraError: for what can be seen to be wrong before the base is loaded.
    """
    from tara.inference.request import GenerationRequest

    earlier = relocated(read_provenance(source), source) if source else None
    if earlier:
        values = earlier.base.model_dump() | earlier.settings.model_dump() | values
        adapters = adapters or [file.given for file in earlier.adapters]
        prompt = earlier.prompt if prompt is None else prompt
    if not (prompt or "").strip():
        raise TaraError('There is no prompt. Write it after the command, such as "a xlo dog on a beach".')
    prompt, tagged = without_tags(prompt or "", folder)
    settings, base = settings_from(GenerationSettings, values), settings_from(BaseSettings, values)
    active, files = loaded((*adapters, *tagged))
    chosen = parse_seeds(seeds, (earlier.seed,) if earlier else DEFAULT_SEEDS)
    facts = {"prompt": prompt, "adapters": active, "seeds": chosen, "settings": settings}
    provenance = RequestProvenance(request=build(GenerationRequest, facts), base=base, adapters=files)
    if earlier:
        _check_unchanged(earlier, files + provenance.inputs)
    return provenance


def without_tags(prompt: str, folder: Path | None) -> tuple[str, list[str]]:
    """The prompt without ``<lora:NAME:WEIGHT>``, and those adapters as `loaded` takes them, from the folder.

    Raises:
        TaraError: for a tag without a folder, or a name that is not in it.
    """
    adapters: list[str] = []
    for tag, name, weight in TAG.findall(prompt):
        if folder is None:
            raise TaraError(
                f"'{tag.strip()}' in the prompt needs the folder of the adapter. Add --adapters FOLDER, or replace "
                f"the tag with -a {name}.safetensors:{weight or 1}."
            )
        files = {file.stem: file for file in sorted(folder.rglob("*.safetensors"), reverse=True)}
        if name not in files:
            hint = nearest(name, files)
            raise TaraError(f"'{tag.strip()}': there is no {name}.safetensors in the folder '{folder}'.{hint}")
        adapters.append(f"{files[name]}:{weight or 1}")
    return TAG.sub("", prompt).strip() if adapters else prompt, adapters


def pipeline_for(base: BaseSettings, device: str | None, execution: ExecutionSettings | None = None) -> Pipeline:
    """The pipeline of a command; the libraries' own bars stay off."""
    from tara.inference.pipeline import Pipeline

    only_our_bars()
    return Pipeline(device=device, **base.model_dump(), **({} if execution is None else execution.model_dump()))


def parse_seeds(text: str | None, default: tuple[int, ...] = DEFAULT_SEEDS) -> tuple[int, ...]:
    """Seeds from `7`, `0-3` or `0,2,5-9`, in the order given, each once.

    Raises:
        TaraError: for anything else.
    """
    if text is None:
        return default
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
    from tara.adapters.formats.locating import lora_file
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
