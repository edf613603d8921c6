"""`tara evaluate`: pictures, drawn for it or there already, scored subject by subject."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from tara.cli.generate import DEFAULT_SEEDS, FLAGS, Adapters, Composers, loaded, parse_composers, parse_seeds
from tara.cli.options import Typed, given, with_flags
from tara.cli.progress import only_our_bars, progress
from tara.cli.terminal import say
from tara.errors import TaraError
from tara.evaluation.settings import EvaluationSettings
from tara.inference.provenance import PictureSettings
from tara.storage.files import check_writable
from tara.storage.lock import claimed
from tara.storage.validation import build

if TYPE_CHECKING:
    from tara.evaluation.protocols import Role, Scene
    from tara.evaluation.scorer import SubjectScorer
    from tara.evaluation.subjects import Picture, Subject

SHOWN = ("success", "presence", "identity", "identity_absent_zero", "leakage")
DRAWING: dict[str, str | None] = {**FLAGS, "composer": None, "image": None, "mask": None, "strength": None}
"""Flags of the pictures; composers have one of their own, and pictures to be scored start from noise."""
WHERE = "tara evaluate: "

References = Annotated[
    tuple[str, ...],
    Parameter(
        name=("--references", "-r"),
        negative=(),
        show_default=False,
        help="WORD=FOLDER or 'WORD KIND=FOLDER': the photos of the subject that a rare word stands for. Give it once "
        "per subject",
    ),
]
Seeds = Annotated[str | None, Parameter(help="Seeds of each prompt: 7, 0-3 or 0,2,5-9 [default: 0-3]")]
Out = Annotated[Path, Parameter(help="Folder to write to; pictures that it holds are not drawn again")]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the flags of a protocol that draws say; ``values`` are those of the settings."""

    adapters: tuple[str, ...]
    references: tuple[str, ...]
    composers: str
    seeds: str | None
    out: Path
    values: dict[str, Any]

    def composed(self) -> list[PictureSettings]:
        """The settings of the pictures with each composer."""
        drawing = given(PictureSettings, self.values, DRAWING)
        names = parse_composers(self.composers)
        return [build(PictureSettings, {**drawing, "composer": name}, WHERE) for name in names]


evaluate = App(
    name="evaluate",
    help="Score pictures subject by subject: who is there, how like itself, how like another.",
    help_format="plaintext",
)


def _folder(
    *folders: Annotated[Path, Parameter(help="Folders of PNG files of `tara generate`, or JSON lists of pictures")],
    references: References = (),
    out: Out = Path("evaluation"),
    typed: Typed = "",
    **values: Any,
) -> None:
    """Score pictures that are there already; several folders are compared with each other, seed by seed."""
    from tara.evaluation.folder import adapter_words, asked_pictures, find_pictures
    from tara.evaluation.subjects import read_subjects

    settings = build(EvaluationSettings, given(EvaluationSettings, values, {}), WHERE)
    if not folders:
        raise TaraError("There is nothing to score. Give a folder of pictures: tara evaluate folder out -r xlo=photos.")
    found = find_pictures(folders)
    subjects = read_subjects(references, adapter_words(found))
    pictures = asked_pictures(found, subjects)
    check_writable(out)
    with claimed(out):
        scorer = _scorer(settings, subjects, [one.base for one in found], out)
        _score("folder", pictures, scorer, settings, out, typed)


def _pairs(
    *,
    adapter: Adapters = (),
    references: References = (),
    groups: Annotated[
        str | None, Parameter(help="Groups of subjects, such as xlo+szn,xlo+qev+vrk; all pairs if left out")
    ] = None,
    prompt: Annotated[
        tuple[str, ...],
        Parameter(
            negative=(),
            show_default=False,
            help="Prompt with {subjects}, such as '{subjects} in a garden'. Give it once per prompt; four places if "
            "left out",
        ),
    ] = (),
    composers: Composers = "tara",
    seeds: Seeds = None,
    out: Out = Path("evaluation"),
    typed: Typed = "",
    **values: Any,
) -> None:
    """Draw all pairs of subjects, or listed groups, in a few places, and score them; same-class pairs are marked."""
    from tara.evaluation.protocols import PROMPTS
    from tara.evaluation.protocols import groups as scenes_of

    listed = groups.split(",") if groups else []
    order = Order(adapters=adapter, references=references, composers=composers, seeds=seeds, out=out, values=values)
    _drawn("pairs", lambda roles: scenes_of(roles, listed, prompt or PROMPTS), order, typed)


def _dreambooth(
    *,
    adapter: Adapters = (),
    references: References = (),
    composers: Composers = "tara",
    seeds: Seeds = None,
    out: Out = Path("evaluation"),
    typed: Typed = "",
    **values: Any,
) -> None:
    """Draw each subject alone in the DreamBooth data set's 25 prompts for things or living subjects, and score them."""
    from tara.evaluation.protocols import dreambooth

    order = Order(adapters=adapter, references=references, composers=composers, seeds=seeds, out=out, values=values)
    _drawn("dreambooth", dreambooth, order, typed)


evaluate.command(with_flags(_folder, {EvaluationSettings: {}}, ["Scoring"]), name="folder")
for _command, _name in ((_pairs, "pairs"), (_dreambooth, "dreambooth")):
    flagged = with_flags(_command, {EvaluationSettings: {}, PictureSettings: DRAWING}, ["Scoring", "Pictures"])
    evaluate.command(flagged, name=_name)


def _drawn(protocol: str, scenes_of: Callable[[list[Role]], list[Scene]], order: Order, typed: str) -> None:
    """Draw a protocol's scenes, as far as they are not there already, and score them."""
    from tara.evaluation.drawn import draw, pictures_of, plan, unfinished
    from tara.evaluation.protocols import cast
    from tara.evaluation.subjects import read_subjects

    settings = build(EvaluationSettings, given(EvaluationSettings, order.values, {}), WHERE)
    composed = order.composed()
    seeds = DEFAULT_SEEDS if order.seeds is None else parse_seeds(order.seeds)
    active_adapters, files = loaded(order.adapters)
    subjects = read_subjects(order.references, [(active.rare_word, active.class_word) for active in active_adapters])
    shots = plan(scenes_of(cast(active_adapters, files, subjects)), composed, seeds, order.out)
    check_writable(order.out)
    missing = unfinished(shots)
    with claimed(order.out):
        # first, because a model that is not here should not be found out after an hour of drawing
        scorer = _scorer(settings, subjects, [composed[0].base], order.out)
        if missing:
            with progress("Drawing", len(missing)) as advance:
                draw(missing, settings.device, settings.batch_size, advance)
        _score(protocol, pictures_of(shots), scorer, settings, order.out, typed)


def _scorer(
    settings: EvaluationSettings, subjects: Sequence[Subject], bases: Iterable[str | None], out: Path
) -> SubjectScorer:
    from tara.evaluation.scorer import load_scorer

    only_our_bars()
    return load_scorer(settings, subjects, bases, out / "cache")


def _score(
    protocol: str,
    pictures: Sequence[Picture],
    scorer: SubjectScorer,
    settings: EvaluationSettings,
    out: Path,
    typed: str,
) -> None:
    """Look, write, and print what a person wants to know first."""
    from tara.evaluation.results import RunInfo
    from tara.evaluation.run import evaluate as score

    how = RunInfo(protocol=protocol, command=typed, models=scorer.models, thresholds=scorer.thresholds)
    with progress("Looking", len(pictures)) as advance:
        found = score(pictures, scorer, out, how, batch_size=settings.batch_size, tell=advance)
    for series in found["series"]:
        figures = {name: series["figures"].get(name) for name in SHOWN}
        told = ", ".join(f"{name} {figure[0]:.2f}" for name, figure in figures.items() if figure)
        say(f"{series['name']}, {series['images']} pictures: {told}")
    say(f"Look at {out / 'index.html'}; the figures are in {out / 'results.json'} and {out / 'results.csv'}.")
