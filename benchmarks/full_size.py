"""Do Stable Diffusion 1.5 and SDXL fit, at full size, into the memory of a desktop computer? Measured without weights.

    python benchmarks/full_size.py                  writes benchmarks/results/full_size_cpu.json
    python benchmarks/full_size.py --family sd15    measures one family, and keeps the other one's row

Both bases are built from their public configs with random weights in float32: every layer has its real name and shape,
nothing is downloaded, and the images are noise. Two subjects of the DreamBooth data set (`--photos`) are trained side
by side for a few steps at 256 pixels, on text keys and values only; then a stock diffusers pipeline generates both in
one image. Each family has a process of its own, whose maximum resident memory is its peak. In a row:

- `seconds`, and `cpu_seconds`, which other work on the machine changes little: `load` initialises the weights;
  `caching` encodes photos and captions, once for a training; `training_step` and `denoising_step` are means, of both
  subjects together and of one guided image with both adapters; `picture` is the whole image, with text and decoding.
- `peak_memory_gib`: by the end of each part, so that the last one is the peak of all.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from result_files import check, command_line, earlier_rows, run_info, show_checks, write
from rich.console import Console

import tara
from tara.adapters.adapter import Adapter
from tara.families.base import Base
from tara.families.single_file import CONFIGS, ORIGINALS, clip_tokenizer
from tara.training.concept_settings import ConceptSettings
from tara.training.inputs import check_inputs
from tara.training.loop import Training
from tara.training.settings import concept_settings, train_settings

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "dreambooth"
SUBJECTS = {"dog": "xlo", "cat": "szn"}
"""Folders of the data set, whose table has their class words, and the rare words for them."""
RESOLUTION, RANK = 256, 8
Moment = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A family's configs, the memory that it must fit into, and whether its training uses gradient checkpointing."""

    configs: str
    memory_gib: float
    gradient_checkpointing: bool


FITS = {
    "sd15": Fit(configs="sd1", memory_gib=8, gradient_checkpointing=False),
    "sdxl": Fit(configs="sdxl", memory_gib=20, gradient_checkpointing=True),
}


class Journal:
    """Seconds and peak memory of one part after another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self.peak_memory_gib: dict[str, float] = {}

    def measure(self, part: str, work: Callable[[], Any], times: int = 1) -> Any:
        """Do a part that consists of so many equal ones, and note it."""
        begun = now()
        result = work()
        self.note(part, begun, now(), times)
        self.peak_memory_gib[part] = round(peak_memory() / 2**30, 2)
        print(f"{part}: {self.seconds[part]} s, {self.peak_memory_gib[part]} GiB so far", file=sys.stderr, flush=True)
        return result

    def note(self, part: str, begun: Moment, ended: Moment, times: int) -> None:
        """Note how long each of so many equal parts took."""
        wall, cpu = (round((last - first) / times, 2) for first, last in zip(begun, ended, strict=True))
        self.seconds[part], self.cpu_seconds[part] = wall, cpu


def now() -> Moment:
    """Wall-clock time and this process's CPU time."""
    return time.perf_counter(), time.process_time()


def peak_memory() -> int:
    """Maximum resident memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def random_pipeline(configs: Path) -> Any:
    """A stock pipeline of a family's published shape; every weight is initialised in place, so none is held twice."""
    index: dict[str, Any] = json.loads((configs / "model_index.json").read_text(encoding="utf-8"))
    parts: dict[str, Any] = {name: clip_tokenizer(padding) for name, padding in ORIGINALS[configs.name].padding.items()}
    for name, value in index.items():
        if not isinstance(value, list):
            parts |= {} if name.startswith("_") else {name: value}
        elif name not in parts:
            library, class_name = value
            parts[name] = None if class_name is None else random_part(library, class_name, configs / name)
    return getattr(diffusers, index["_class_name"])(**parts)


def random_part(library: str, class_name: str, configs: Path) -> Any:
    """One part of a pipeline by its config, with the weights that its layers initialise."""
    if library == "transformers":
        return getattr(transformers, class_name)(transformers.CLIPTextConfig.from_pretrained(configs))
    part: Any = getattr(diffusers, class_name)
    return part.from_config(part.load_config(configs))


def measure(family: str, photos: Path, steps: int, threads: int) -> dict[str, Any]:
    """One family's row of the result file; runs in a process of its own."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    fit, journal = FITS[family], Journal()
    pipe = journal.measure("load", lambda: random_pipeline(CONFIGS / fit.configs))
    pipe.set_progress_bar_config(disable=True)
    settings = train_settings(
        base=family,
        rank=RANK,
        steps=steps,
        resolution=RESOLUTION,
        flip=False,
        gradient_checkpointing=fit.gradient_checkpointing,
    )
    concepts = [concept_settings(images=photos / folder, rare_word=word) for folder, word in SUBJECTS.items()]
    training = journal.measure("caching", lambda: Training(check_inputs(concepts, settings, Base(pipe))))
    records = journal.measure("training_step", lambda: list(training.steps()), steps)
    adapters = training.adapters()
    denoising = compose(pipe, concepts, adapters, steps, journal)
    return {
        "family": family,
        "parameters": {name: part.num_parameters() for name, part in _models(pipe).items()},
        "resolution": RESOLUTION,
        "steps": {"training": steps, "denoising": denoising},
        "gradient_checkpointing": fit.gradient_checkpointing,
        "layers_that_learn": len(adapters[0].layers),
        "losses": [round(record.loss, 4) for record in records],
        "seconds": journal.seconds,
        "cpu_seconds": journal.cpu_seconds,
        "peak_memory_gib": journal.peak_memory_gib,
        "threads": threads,
    }


def compose(
    pipe: Any, concepts: Sequence[ConceptSettings], adapters: Sequence[Adapter], steps: int, journal: Journal
) -> int:
    """Generate both subjects in one image; the number of denoising steps that the scheduler made of ``steps``."""
    prompt = " and ".join(f"a {concept.rare_word} {concept.class_word}" for concept in concepts)
    moments: list[Moment] = []

    def after_step(_pipe: Any, _index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        moments.append(now())
        return tensors

    def generate() -> None:
        with tara.prepared(pipe, prompt, adapters) as arguments:
            moments.append(now())
            pipe(
                **arguments,
                height=RESOLUTION,
                width=RESOLUTION,
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(0),
                callback_on_step_end=after_step,
            )

    journal.measure("picture", generate)
    denoising = len(moments) - 1
    journal.note("denoising_step", moments[0], moments[-1], denoising)
    return denoising


def _models(pipe: Any) -> dict[str, Any]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def run(families: Sequence[str], photos: Path, steps: int, threads: int) -> list[dict[str, Any]]:
    """The rows of the families, each measured in a process of its own."""
    rows: list[dict[str, Any]] = []
    for family in families:
        print(f"{family}, {steps} steps", file=sys.stderr, flush=True)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            row = process.submit(measure, family, photos, steps, threads).result()
        # without the folder of the photos, which is another one on every machine
        command = f"python benchmarks/full_size.py --family {family} --steps {steps} --threads {threads}"
        rows.append(row | run_info() | {"command": command})
    return rows


def result_of(rows: Sequence[dict[str, Any]], earlier: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The result file: the rows, earlier ones of other families, and the bounds of memory."""
    by_family = {row["family"]: row for row in (*earlier, *rows)}
    kept = [by_family[family] for family in FITS if family in by_family]
    return {"rows": kept, "checks": [_check(row) for row in kept]}


def _check(row: dict[str, Any]) -> dict[str, Any]:
    peak, bound = max(row["peak_memory_gib"].values()), FITS[row["family"]].memory_gib
    return check(f"{row['family']}, peak memory, GiB", peak, f"<= {bound}", peak <= bound)


def show(result: dict[str, Any]) -> None:
    """The rows and the checks, one a line."""
    console = Console(highlight=False)
    for row in result["rows"]:
        seconds = ", ".join(f"{part} {value}" for part, value in row["cpu_seconds"].items())
        console.print(f"{row['family']}: CPU seconds: {seconds}; {max(row['peak_memory_gib'].values())} GiB")
    show_checks(result["checks"])


def main() -> None:
    """The command line."""
    parser = command_line(__doc__, "full_size_cpu.json")
    parser.add_argument("--family", choices=FITS, help="only this one")
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="folder of the DreamBooth data set")
    parser.add_argument("--steps", type=int, default=2, help="training steps, and denoising steps")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    if not (args.photos / next(iter(SUBJECTS))).is_dir():
        parser.error(f"{args.photos} is not the folder of the DreamBooth data set; give it as --photos")
    families = [args.family] if args.family else list(FITS)
    result = result_of(run(families, args.photos, args.steps, args.threads), earlier_rows(args.out))
    write(args.out, result)
    show(result)


if __name__ == "__main__":
    main()
