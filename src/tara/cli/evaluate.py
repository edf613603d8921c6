"""`tara evaluate`: images, generated for it or existing ones, scored subject by subject."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from tara.cli.options import Typed, given, with_flags
from tara.cli.progress import only_our_bars, progress
from tara.cli.requests import (
    DEFAULT_SEEDS,
    Adapters,
    Composers,
    base_settings,
    loaded,
    parse_composers,
    parse_seeds,
    pipeline_for,
)
from tara.cli.terminal import say
from tara.errors import TaraError
from tara.evaluation.settings import EvaluationSettings
from tara.families.settings import BaseSettings, ExecutionSettings
from tara.inference.settings import GenerationSettings
from tara.storage.files import check_writable
from tara.storage.lock import claimed
from tara.storage.validation import build

if TYPE_CHECKING:
    from tara.evaluation.protocols import EvaluationPrompt, TrainedSubject
    from tara.evaluation.scorer import SubjectScorer
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
Groups = Annotated[str | None, Parameter(help="Groups of subjects, such as xlo+szn,xlo+qev+vrk [default: all pairs]")]
Prompts = Annotated[
    tuple[str, ...],
    Parameter(
        negative=(),
        show_default=False,
        help="Prompt with {subjects}, such as '{subjects} in a garden'; once per prompt [default: four places]",
    ),
]
Seeds = Annotated[str | None, Parameter(help="Seeds of each prompt: 7, 0-3 or 0,2,5-9 [default: 0-3]")]
Out = Annotated[Path, Parameter(help="Output folder; images in it are not generated again")]
FOLDER = Path("evaluation")

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
    records = image_records(images, subjects)
    check_writable(out)
    with claimed(out):
        _score("folder", records, _scorer(settings, subjects, out), settings, out, typed)


def _pairs(*, groups: Groups = None, prompt: Prompts = (), **values: Any) -> None:
    """Generate all pairs of subjects, or the given groups, in a few places, and score them."""
    from tara.evaluation.protocols import PROMPTS, group_prompts

    listed = groups.split(",") if groups else []
    _generate_and_score("pairs", lambda trained: group_prompts(trained, listed, prompt or PROMPTS), **values)


def _dreambooth(**values: Any) -> None:
    """Generate each subject alone in the DreamBooth data set's 25 prompts for its class, and score the images."""
    from tara.evaluation.protocols import dreambooth_prompts

    _generate_and_score("dreambooth", dreambooth_prompts, **values)


def _generate_and_score(
    protocol: str,
    prompts_of: Callable[[list[TrainedSubject]], list[EvaluationPrompt]],
    *,
    adapter: Adapters = (),
    references: References = (),
    composers: Composers = "tara",
    seeds: Seeds = None,
    out: Out = FOLDER,
    typed: Typed = "",
    **values: Any,
) -> None:
    from tara.evaluation.generated import generate, missing_images, plan
    from tara.evaluation.protocols import trained_subjects
    from tara.evaluation.subjects import read_subjects
