"""`tara evaluate`: images, generated for it or existing ones, scored subject by subject."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from pydantic import BaseModel

from tara.cli.options import Typed, given, with_flags
from tara.cli.progress import only_our_bars, progress
from tara.cli.requests import (
    DEFAULT_SEEDS,
    Adapters,
    Composers,
    Seeds,
    loaded,
    parse_composers,
    parse_seeds,
    pipeline_for,
)
from tara.cli.terminal import say
from tara.errors import TaraError
from tara.evaluation.settings import EvaluationSettings
from tara.families.settings import BaseSettings
from tara.inference.settings import GenerationSettings
from tara.storage.files import check_writable
from tara.storage.lock import claimed
from tara.storage.validation import build

if TYPE_CHECKING:
    from tara.evaluation.protocols import EvaluationPrompt, TrainedSubject
    from tara.evaluation.subjects import ImageRecord, Subject

SHOWN = ("success", "presence", "identity", "identity_absent_zero", "leakage")

References = Annotated[
    tuple[str, ...],
    Parameter(
        name=("--references", "-r"),
        negative=(),
        show_default=False,
        help="RARE_WORD=FOLDER or 'RARE_WORD CLASS_WORD=FOLDER': the photos of a subject; once per subject",
    ),
]
Out = Annotated[Path, Parameter(help="Output folder; an interrupted command continues there")]
FOLDER = Path("evaluation")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ProtocolFlags:
    """The flags of a protocol that generates its images."""

    adapter: Adapters = ()
    references: References = ()
    composers: Composers = "tara"
    seeds: Seeds = None
    out: Out = FOLDER


evaluate = App(
    name="evaluate",
    help="Score images subject by subject: presence, identity, leakage.",
    help_format="plaintext",
)


def _folder(
    *folders: Annotated[Path, Parameter(help="Folders of PNG files of `tara generate`, or JSON lists of images")],
    references: References = (),
    out: Out = FOLDER,
    typed: Typed = "",
    **values: Any,
) -> None:
    """Score existing images; several folders are compared with each other, paired by prompt and seed."""
    from tara.evaluation.folder import adapter_words, find_images, image_records
    from tara.evaluation.subjects import read_subjects

    settings = build(EvaluationSettings, given(EvaluationSettings, values))
    if not folders:
        raise TaraError("There is nothing to score. Give a folder of images: tara evaluate folder out -r xlo=photos.")
    images = find_images(folders)
    subjects = read_subjects(references, adapter_words(images))
    _score("folder", image_records(images, subjects), subjects, settings, out, typed)


def _pairs(
    *,
    groups: Annotated[
        str | None, Parameter(help="Groups of subjects, such as xlo+szn,xlo+qev+vrk [default: all pairs]")
    ] = None,
    prompt: Annotated[
        tuple[str, ...],
        Parameter(
            negative=(),
            show_default=False,
            help="Prompt such as '{subjects} in a garden'; once per prompt [default: four places]",
        ),
    ] = (),
    flags: ProtocolFlags = ProtocolFlags(),
    typed: Typed = "",
    **values: Any,
) -> None:
    """Generate all pairs of subjects, or the given groups, in a few places, and score the images."""
    from tara.evaluation.protocols import PROMPTS, group_prompts

    listed = groups.split(",") if groups else []
    _generate("pairs", lambda trained: group_prompts(trained, listed, prompt or PROMPTS), flags, typed, values)


def _dreambooth(*, flags: ProtocolFlags = ProtocolFlags(), typed: Typed = "", **values: Any) -> None:
    """Generate each subject alone in the DreamBooth data set's 25 prompts for its class, and score the images."""
    from tara.evaluation.protocols import dreambooth_prompts

    _generate("dreambooth", dreambooth_prompts, flags, typed, values)


GENERATION: dict[type[BaseModel], str] = {
    EvaluationSettings: "Scoring",
    BaseSettings: "Base",
    GenerationSettings: "Images",
}
evaluate.command(with_flags(_folder, {EvaluationSettings: "Scoring"}), name="folder")
for command, name in ((_pairs, "pairs"), (_dreambooth, "dreambooth")):
    evaluate.command(with_flags(command, GENERATION, ("composer", "image", "mask", "strength")), name=name)


def _generate(
    protocol: str,
    prompts_of: Callable[[list[TrainedSubject]], list[EvaluationPrompt]],
    flags: ProtocolFlags,
    typed: str,
    values: dict[str, Any],
) -> None:
    """Plan the images of a protocol, generate those that are missing, and score all of them."""
    from tara.evaluation.generated import generate, is_generated, plan
    from tara.evaluation.protocols import trained_subjects
    from tara.evaluation.subjects import read_subjects

    scoring, base, sampling = (given(model, values) for model in GENERATION)
    settings, base = build(EvaluationSettings, scoring), build(BaseSettings, base)
    composers = parse_composers(flags.composers)
    by_composer = [build(GenerationSettings, {**sampling, "composer": composer}) for composer in composers]
    seeds = DEFAULT_SEEDS if flags.seeds is None else parse_seeds(flags.seeds)
    active, files = loaded(flags.adapter)
    subjects = read_subjects(flags.references, [(one.rare_word, one.class_word) for one in active])
    planned = plan(prompts_of(trained_subjects(active, files, subjects)), base, by_composer, seeds, flags.out)

    missing = [one for one in planned if not is_generated(one)]

    def generate_missing() -> None:
        if missing:
            pipeline = pipeline_for(base, settings.device)
            with progress("Generating", len(missing)) as advance:
                generate(pipeline, missing, settings.batch_size, advance)

    _score(protocol, [one.record for one in planned], subjects, settings, flags.out, typed, generate_missing)


def _score(
    protocol: str,
    records: Sequence[ImageRecord],
    subjects: Sequence[Subject],
    settings: EvaluationSettings,
    out: Path,
    typed: str,
    generate_missing: Callable[[], None] = lambda: None,
) -> None:
    """Score images that exist or are generated first, write the results, and print the main metrics."""
    from tara.evaluation.metrics import RunInfo
    from tara.evaluation.results import evaluate as score
    from tara.evaluation.scorer import load_scorer

    only_our_bars()
    check_writable(out)
    with claimed(out):
        scorer = load_scorer(settings, subjects, out / "cache")  # before hours of sampling: a model may be missing
        generate_missing()
        run_info = RunInfo(protocol=protocol, command=typed, models=scorer.models, thresholds=scorer.thresholds)
        with progress("Scoring", len(records)) as advance:
            results = score(records, scorer, out, run_info, batch_size=settings.batch_size, on_progress=advance)
    for series in results["series"]:
        means = [f"{name} {series['metrics'][name][0]:.2f}" for name in SHOWN if name in series["metrics"]]
        say(f"{series['name']}, {series['count']} images: {', '.join(means)}")
    say(f"Look at {out / 'index.html'}; the metrics are in {out / 'results.json'} and {out / 'results.csv'}.")
