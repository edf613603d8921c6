"""`tara generate`: a prompt, adapters and seeds to pictures that remember how they were made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tara.cli.options import given, with_flags
from tara.cli.progress import only_our_bars, progress
from tara.cli.terminal import say
from tara.errors import TaraError
from tara.families.settings import ExecutionSettings
from tara.inference.composers import composer_named
from tara.inference.provenance import (
    Origin,
    PictureSettings,
    UsedFile,
    png_with_origin,
    read_origin,
    relocated,
    used_file,
)
from tara.storage.files import atomic_write, check_writable
from tara.storage.lock import claimed
from tara.storage.validation import build

if TYPE_CHECKING:
    from tara.analysis.comparison import Compared
    from tara.inference.binding import ActiveAdapter
    from tara.inference.pipeline import Generated

FLAGS = {"negative_prompt": "negative", "guidance_scale": "guidance"}
MOST_SEEDS, MOST_SHOWN = 10_000, 64
DEFAULT_SEEDS = (0, 1, 2, 3)
Prompt = Annotated[str | None, Parameter(help="What to draw, with the adapters' rare words in it")]
Adapters = Annotated[
    tuple[str, ...],
    Parameter(
        name=("--adapter", "-a"),
        negative=(),
        show_default=False,
        help="FILE or FILE:key=value,... with keys weight, word, kind, global, alpha; FILE:0.8 is a weight. "
        "FILE may be on the hub: OWNER/NAME or OWNER/NAME/FILE. Give it once per adapter",
    ),
]
Seeds = Annotated[str | None, Parameter(help="One picture per seed: 7, 0-3 or 0,2,5-9 [default: 0-3]")]
Composers = Annotated[str, Parameter(help="Ways to compose that are compared, such as tara,sum")]
Device = Annotated[str | None, Parameter(help="cuda, mps or cpu; the best one found if left out")]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be drawn."""

    prompt: str
    active_adapters: tuple[ActiveAdapter, ...]
    used: tuple[UsedFile, ...]
    inputs: tuple[UsedFile, ...]
    seeds: tuple[int, ...]
    settings: PictureSettings


def _generate(
    prompt: Prompt = None,
    /,
    *,
    adapter: Adapters = (),
    seeds: Seeds = None,
    out: Annotated[Path, Parameter(help="Folder to write to")] = Path("out"),
    from_: Annotated[
        Path | None, Parameter(name="--from", help="Repeat this picture as its file tells; other flags change it")
    ] = None,
    batch_size: Annotated[int, Parameter(help="Pictures drawn at a time; it does not change them")] = 4,
    device: Device = None,
    **values: Any,
) -> None:
    """Draw pictures with any number of adapters: `tara generate "a xlo dog on a beach" -a rex.safetensors`."""
    if batch_size < 1:
        raise TaraError(f"--batch-size {batch_size} draws nothing. Give 1 or more.")
    order = order_of(prompt, adapter, seeds, from_, given(PictureSettings, values, FLAGS))
    check_before_the_base(order, [order.settings.composer])
    check_writable(out)
    execution = build(ExecutionSettings, given(ExecutionSettings, values, {}))
    with claimed(out):
        missing = tuple(seed for seed in order.seeds if not _is_finished(order, seed, out))
        if missing:
            for picture in drawn(replace(order, seeds=missing), batch_size, device, execution):
                atomic_write(_file(out, picture.seed), remembering_png(picture, order))
        _write_sheet(out / "sheet.png", order, out)
    count = "1 picture" if len(order.seeds) == 1 else f"{len(order.seeds)} pictures"
    there = len(order.seeds) - len(missing)
    known = f" ({there} there already)" if there else ""
    say(f"{count}{known} in {out}, on one sheet in {out / 'sheet.png'}")


generate = with_flags(_generate, {PictureSettings: FLAGS, ExecutionSettings: {}}, ["Pictures", "Time and memory"])


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
            raise TaraError(f"--seeds '{text}': '{part.strip()}' is no range. Write the smaller number first.")
        if stop >= 2**63:
            raise TaraError(f"--seeds '{text}': '{part.strip()}' is too large. Seeds are less than 2^63.")
        if stop - start + len(seeds) >= MOST_SEEDS:
            raise TaraError(f"--seeds '{text}' asks for more than {MOST_SEEDS} pictures. Ask for fewer at a time.")
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


def order_of(
    prompt: str | None, adapters: tuple[str, ...], seeds: str | None, source: Path | None, changed: dict[str, Any]
) -> Order:
    """Put together what the flags say and what the picture to be repeated says; flags win.

    Raises:
        TaraError: for what can be seen to be wrong before the base is loaded.
    """
    from tara.adapters.formats.peft_config import config_beside

    origin = relocated(read_origin(source), source) if source else None
    kept = origin.settings.model_dump() if origin else {}
    settings = build(PictureSettings, kept | changed)
    text = prompt if prompt is not None else (origin.prompt if origin else "")
    if not text.strip():
        raise TaraError('There is no prompt. Write it behind the command, such as "a xlo dog on a beach".')
    for name in ("mask", "strength"):
        if getattr(settings, name) is not None and settings.image is None:
            raise TaraError(f"--{name} says what to do with a start picture. Give that as --image, too.")
    if origin and not adapters:
        adapters = tuple(file.given for file in origin.adapters)
    active_adapters, used = loaded(adapters)
    scales = [config_beside(Path(file.path)) for file in used]  # a PEFT folder keeps them in a file of their own
    inputs = tuple(used_file(path) for path in (settings.image, settings.mask, *scales) if path)
    if origin:
        _check_unchanged(origin, used + inputs)
    if seeds is not None:
        chosen = parse_seeds(seeds)
    elif origin:
        chosen = (origin.seed,)
    else:
        chosen = DEFAULT_SEEDS
    return Order(
        prompt=text, active_adapters=active_adapters, used=used, inputs=inputs, seeds=chosen, settings=settings
    )


def loaded(specs: Sequence[str]) -> tuple[tuple[ActiveAdapter, ...], tuple[UsedFile, ...]]:
    """Adapters as `FILE[:key=value,...]` names them, and what a picture remembers of their files."""
    from tara.inference.binding import parse_adapter

    return tuple(parse_adapter(spec) for spec in specs), tuple(_used(spec) for spec in specs)


def _used(spec: str) -> UsedFile:
    """The weights file of `FILE[:key=value,...]`; one on the hub is known by its name there, not by its copy's here."""
    from tara.adapters.formats.reading import lora_file
    from tara.inference.binding import split_options

    name, _ = split_options(spec)
    used = used_file(lora_file(Path(name)), spec)
    return used if Path(name).exists() else used.model_copy(update={"path": name})


def check_before_the_base(order: Order, composers: Sequence[str]) -> None:
    """Refuse what needs no base to be seen, because that may take minutes to load."""
    from tara.inference.binding import find_words
    from tara.inference.composers import check_composable
    from tara.storage.images import read_image

    for picture in (order.settings.image, order.settings.mask):
        if picture is not None:
            read_image(picture)
    for composer in map(composer_named, composers):
        check_composable(composer, order.active_adapters)
        if not composer.everywhere:
            find_words(order.prompt, order.active_adapters)


def _check_unchanged(origin: Origin, now: Sequence[UsedFile]) -> None:
    """Refuse to repeat a picture with a file that has the same name and another content."""
    then = {file.path: file.sha256 for file in (*origin.adapters, *origin.inputs)}
    for file in now:
        if then.get(file.path, file.sha256) != file.sha256:
            raise TaraError(
                f"'{file.path}' has changed since this picture was made with it. Bring the old file back, "
                "or draw a new picture without --from."
            )


def drawn(
    order: Order, batch_size: int, device: str | None, execution: ExecutionSettings | None = None
) -> Iterator[Generated]:
    """Draw an order behind a progress bar."""
    from tara.inference.drawing import pipeline_of

    settings = sampling_values(order) | {"batch_size": batch_size}
    only_our_bars()
    pipeline = pipeline_of(order.settings, device, execution)
    with progress("Drawing", len(order.seeds)) as advance:
        yield from pipeline.stream(
            order.prompt,
            order.active_adapters,
            order.seeds,
            on_step=lambda step: advance(step.fraction * step.images, ""),
            **settings,
        )


def sampling_values(order: Order) -> dict[str, Any]:
    """The settings of an order as `tara.Pipeline` takes them, refused where they can be before the base is loaded."""
    from tara.inference.drawing import drawing_settings
    from tara.inference.stock_pipelines import sampling_settings

    settings = drawing_settings(order.settings)
    sampling_settings(settings)
    return settings


def remembering_png(picture: Generated | Compared, order: Order) -> bytes:
    """A picture as a PNG file that tells how it was made."""
    return png_with_origin(picture.image, _origin(order, picture.seed))


def _origin(order: Order, seed: int) -> Origin:
    return Origin(prompt=order.prompt, seed=seed, adapters=order.used, inputs=order.inputs, settings=order.settings)


def _file(out: Path, seed: int) -> Path:
    return out / f"seed-{seed:04d}.png"


def _is_finished(order: Order, seed: int, out: Path) -> bool:
    """Whether the folder holds this very picture, from a command that was stopped before its last one."""
    wanted = _origin(order, seed)
    try:
        there = read_origin(_file(out, seed))
    except TaraError:  # not there, or not whole
        return False
    return there.model_copy(update={"tara_version": wanted.tara_version}) == wanted


def _write_sheet(path: Path, order: Order, out: Path) -> None:
    from tara.report.page import contact_sheet, png_bytes, wrapped
    from tara.storage.images import read_image

    seeds = order.seeds[:MOST_SHOWN]
    images = [read_image(_file(out, seed)) for seed in seeds]
    labels = [f"seed {seed}" for seed in seeds]
    atomic_write(path, png_bytes(contact_sheet(wrapped(images, labels, title=order.prompt))))
