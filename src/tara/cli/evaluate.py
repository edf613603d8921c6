"""`tara evaluate`: scores generated or existing images, subject by subject."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from cyclopts import App, Parameter
from pydantic import BaseModel

from tara.cli import requests
from tara.cli.examples import with_examples
from tara.cli.options import CommandLine, Overwrite, require, settings_from, with_options
from tara.cli.terminal import only_our_bars, progress, say
from tara.errors import TaraError
from tara.evaluation.settings import EvaluationSettings
from tara.evaluation.subjects import ImageRecord, Subject, read_subjects
from tara.families.settings import BaseSettings
from tara.inference.settings import GenerationSettings
from tara.report.page import PAGE
from tara.storage.files import digest
from tara.storage.outputs import output_folder

if TYPE_CHECKING:
    from tara.evaluation.protocols import EvaluationPrompt, TrainedSubject

RESULTS, TABLE = "results.json", "results.csv"
SHOWN = ("success", "presence", "identity", "identity_absent_zero", "leakage")
GENERATING: dict[type[BaseModel], str] = {
    EvaluationSettings: "Scoring",
    BaseSettings: "Base",
    GenerationSettings: "Images",
}
FIXED = ("composer", "image", "mask", "strength")
"""Settings of a generation that a protocol decides."""

References = Annotated[
    tuple[str, ...],
    Parameter(
        name=("--references", "-r"),
        negative=(),
        show_default=False,
        help="Photos of a subject, RARE_WORD=FOLDER or 'RARE_WORD CLASS_WORD=FOLDER'; once per subject",
    ),
]
Out = Annotated[Path, Parameter(help="Output folder; an interrupted command continues there")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ProtocolFlags:
    """The flags of a protocol that generates its images."""

    adapter: requests.Adapters = ()
    references: References = ()
    composers: requests.Composers = "tara"
    seeds: requests.Seeds = None
    out: Out = Path("evaluation")
    overwrite: Overwrite = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PairsFlags(ProtocolFlags):
    """Further flags of ``pairs``."""

    groups: Annotated[
        str | None, Parameter(help="Groups of subjects, such as xlo+szn,xlo+qev+vrk [default: all pairs]")
    ] = None
    prompt: Annotated[
        tuple[str, ...],
        Parameter(
            negative=(), show_default=False, help="Prompt with {subjects}; may be repeated [default: four prompts]"
        ),
    ] = ()


@with_options({EvaluationSettings: "Scoring"})
def folder(
    *folders: Annotated[Path, Parameter(help="Folders of PNG files of `tara generate`, or JSON lists of images")],
    references: References = (),
    out: Out = Path("evaluation"),
    overwrite: Overwrite = False,
    command_line: CommandLine = "",
    **values: Any,
) -> None:
    """Score existing images; several folders are compared with each other, paired by prompt and seed."""
    from tara.evaluation.folder import adapter_words, find_images, image_records

    if not folders:
        raise TaraError("There is nothing to score. Give a folder of images: tara evaluate folder out -r xlo=photos.")
    settings = settings_from(EvaluationSettings, values)
    images = find_images(folders)
    subjects = read_subjects(references, adapter_words(images))
    wanted = {"images": [[str(entry.file), digest(entry.file)] for entry, _ in images]}
    _score(Run("folder", command_line, out, overwrite, wanted), image_records(images, subjects), subjects, settings)


@with_options(GENERATING, without=FIXED)
def pairs(*, flags: PairsFlags = PairsFlags(), command_line: CommandLine = "", **values: Any) -> None:
    """Generate all pairs of subjects, or the given groups, with each prompt, and score the images."""
    from tara.evaluation.protocols import PROMPTS, group_prompts

    groups = flags.groups.split(",") if flags.groups else []
    _generate(
        "pairs", flags, command_line, values, lambda trained: group_prompts(trained, groups, flags.prompt or PROMPTS)
    )


@with_options(GENERATING, without=FIXED)
def dreambooth(*, flags: ProtocolFlags = ProtocolFlags(), command_line: CommandLine = "", **values: Any) -> None:
    """Generate each subject alone, with the 25 DreamBooth prompts for its class, and score the images."""
    from tara.evaluation.protocols import dreambooth_prompts

    _generate("dreambooth", flags, command_line, values, dreambooth_prompts)


evaluate = App(
    "evaluate",
    help=with_examples("Score images subject by subject: presence, identity, leakage.", "evaluate"),
    help_format="plaintext",
)
for command in (folder, pairs, dreambooth):
    page = with_examples(inspect.getdoc(command) or "", f"evaluate {command.__name__}")
    evaluate.command(command, name=command.__name__, help=page)


def _generate(
    protocol: str,
    flags: ProtocolFlags,
    command_line: str,
    values: dict[str, Any],
    prompts_of: Callable[[list[TrainedSubject]], list[EvaluationPrompt]],
) -> None:
    """Generate the missing images of a protocol, and score all of its images."""
    from tara.evaluation.generated import generate, plan
    from tara.evaluation.protocols import trained_subjects

    require(f"evaluate {protocol}", vars(flags), "adapter", "references")
    settings, base = settings_from(EvaluationSettings, values), settings_from(BaseSettings, values)
    sampling = settings_from(GenerationSettings, values)
    composers, seeds = requests.parse_composers(flags.composers), requests.parse_seeds(flags.seeds)
    active, files = requests.loaded(flags.adapter)
    subjects = read_subjects(flags.references, [(adapter.rare_word, adapter.class_word) for adapter in active])
    prompts = prompts_of(trained_subjects(active, files, subjects))
    planned = plan(prompts, base, sampling, composers, seeds, flags.out)

    def generate_missing() -> None:
        missing = [rest for images in planned if (rest := images.missing()).records]
        if missing:
            pipeline = requests.pipeline_for(base, settings.device)
            with progress("Generating", sum(len(images.records) for images in missing)) as advance:
                generate(pipeline, missing, settings.batch_size, advance)

    prompted = [[prompt.text, [each.file.model_dump() for each in prompt.trained]] for prompt in prompts]
    wanted = {"prompts": prompted, "seeds": seeds, "composers": composers}
    wanted |= base.model_dump(mode="json") | sampling.model_dump(mode="json")
    records = [record for images in planned for record in images.records.values()]
    run = Run(protocol, command_line, flags.out, flags.overwrite, wanted)
    _score(run, records, subjects, settings, generate_missing)


class Run(NamedTuple):
    """An evaluation's protocol, command and output folder, and what its images depend on, by name."""

    protocol: str
    command: str
    out: Path
    overwrite: bool
    depends_on: dict[str, Any]


def _score(
    run: Run,
    records: Sequence[ImageRecord],
    subjects: Sequence[Subject],
    settings: EvaluationSettings,
    generate: Callable[[], None] = lambda: None,
) -> None:
    """Score images that exist or are generated first, write the results, and print the main metrics."""
    from tara.evaluation.results import evaluate as score
    from tara.evaluation.scorer import load_scorer

    only_our_bars()
    out, references = run.out, {subject.name: str(subject.photos.absolute()) for subject in subjects}
    scoring = settings.model_dump(mode="json", exclude={"device", "batch_size"})
    wanted = {"protocol": run.protocol, "references": references, **scoring, **run.depends_on}
    # results of the same settings are written once more: the images may be others under the same names
    with output_folder(out, wanted, RESULTS, TABLE, PAGE, overwrite=run.overwrite):
        scorer = load_scorer(settings, subjects, out / "cache")  # before hours of sampling: a model may be missing
        generate()
        models = settings.model_dump(include={"detector", "dino", "clip", "plain_dino"})
        about = {"protocol": run.protocol, "command": run.command, "models": models}
        with progress("Scoring", len(records)) as advance:
            results = score(records, scorer, out, about=about, batch_size=settings.batch_size, on_progress=advance)
    for series in results["series"]:
        means = [f"{name} {series['metrics'][name][0]:.2f}" for name in SHOWN if name in series["metrics"]]
        say(f"{series['name']}, {series['count']} images: {', '.join(means)}")
    say(f"Look at {out / PAGE}; the metrics are in {out / RESULTS} and {out / TABLE}.")
