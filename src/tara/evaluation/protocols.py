"""The prompts of an evaluation: groups of subjects in a few places, or the prompts of the DreamBooth data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from tara.errors import TaraError, nearest
from tara.evaluation.subjects import Subject, class_category
from tara.inference.active_adapter import ActiveAdapter, check_named
from tara.inference.provenance import UsedFile
from tara.storage.dreambooth import LIVE_CLASSES, TABLE, subject_of

SUBJECTS = "{subjects}"
PROMPTS = ("a photo of {subjects}", "{subjects} on the beach", "{subjects} in the snow", "{subjects} on the street")
LIVING, OBJECTS = "living subjects", "objects"


@dataclass(frozen=True, eq=False)
class TrainedSubject:
    """A subject and the adapter that was trained on it."""

    subject: Subject
    active: ActiveAdapter
    file: UsedFile


@dataclass(frozen=True, eq=False)
class EvaluationPrompt:
    """A prompt, the subjects that it names, and its category."""

    text: str
    trained: tuple[TrainedSubject, ...]
    category: str

    @property
    def subjects(self) -> tuple[Subject, ...]:
        return tuple(member.subject for member in self.trained)


def trained_subjects(
    active_adapters: Sequence[ActiveAdapter], files: Sequence[UsedFile], subjects: Sequence[Subject]
) -> list[TrainedSubject]:
    """Every adapter with its subject.

    Raises:
        TaraError: when an adapter is a style or has no rare word, or adapters and photos do not match.
    """
    check_named(active_adapters)
    by_name = {subject.name.casefold(): subject for subject in subjects}
    trained: list[TrainedSubject] = []
    for active, file in zip(active_adapters, files, strict=True):
        name = f"{active.rare_word} {active.class_word}"
        if active.adapter.card.is_style:
            raise TaraError(f"{active.name} is a style, which a detector cannot find in an image. Leave it out.")
        if name.casefold() not in by_name:
            raise TaraError(f"There are no photos of '{name}'. Add --references '{name}=FOLDER'.")
        trained.append(TrainedSubject(by_name.pop(name.casefold()), active, file))
    if by_name:
        known = ", ".join(member.subject.name for member in trained) or "none"
        raise TaraError(f"There is no adapter for '{next(iter(by_name))}', only for: {known}. Add it with --adapter.")
    return trained


def group_prompts(
    trained: Sequence[TrainedSubject], groups: Sequence[str] = (), prompts: Sequence[str] = PROMPTS
) -> list[EvaluationPrompt]:
    """Prompts with several subjects: all pairs if ``groups`` is empty, else groups such as ``xlo+szn``, of any size.

    Raises:
        TaraError: when a group names an unknown subject, there is none, or a prompt has no ``{subjects}``.
    """
    for prompt in prompts:
        if SUBJECTS not in prompt:
            raise TaraError(f"The prompt '{prompt}' does not say where the subjects go. Write {SUBJECTS} there.")
    chosen = [_group(text, trained) for text in groups] or list(combinations(trained, 2))
    if not chosen:
        raise TaraError(f"A pair needs two subjects, but only {len(trained)} is given. Give --adapter at least twice.")
    planned: list[EvaluationPrompt] = []
    for group in chosen:
        subjects = [member.subject for member in group]
        texts = [prompt.replace(SUBJECTS, joined_names(subjects)) for prompt in prompts]
        planned += [EvaluationPrompt(text, group, class_category(subjects)) for text in texts]
    return planned


def dreambooth_prompts(trained: Sequence[TrainedSubject]) -> list[EvaluationPrompt]:
    """Each subject alone in the 25 prompts that the DreamBooth data set has for objects or for living subjects.

    The table is found beside the folder of the subject's photos (Ruiz et al., DreamBooth, CVPR 2023).

    Raises:
        TaraError: when there is no table, or it has no prompts.
    """
    prompts: list[EvaluationPrompt] = []
    for member in trained:
        row = subject_of(member.subject.photos)
        if row is None or not row.prompts:
            raise TaraError(
                f"There is no {TABLE} with prompts beside '{member.subject.photos}', the folder of --references "
                f"'{member.subject.name}'. Put the data set's table there, or use `tara evaluate pairs`."
            )
        category = LIVING if row.class_word in LIVE_CLASSES else OBJECTS
        for template in row.prompts:
            text = template.replace("{rare_word}", member.active.rare_word).replace(
                "{class_word}", member.active.class_word
            )
            prompts.append(EvaluationPrompt(text, (member,), category))
    return prompts


def joined_names(subjects: Sequence[Subject]) -> str:
    """For instance "a xlo dog, a szn cat and a qev car"."""
    *first, last = [f"a {subject.name}" for subject in subjects]
    return f"{', '.join(first)} and {last}" if first else last


def _group(text: str, trained: Sequence[TrainedSubject]) -> tuple[TrainedSubject, ...]:
    by_name = {
        name.casefold(): member for member in trained for name in (member.subject.rare_word, member.subject.name)
    }
    group: list[TrainedSubject] = []
    for part in text.split("+"):
        one = by_name.get(part.strip().casefold())
        if one is None or one in group:
            why = "names a subject twice" if one else f"names '{part}', for which there is no adapter"
            raise TaraError(f"The group '{text}' {why}.{nearest(part, by_name)} Write it like xlo+szn.")
        group.append(one)
    return tuple(group)
