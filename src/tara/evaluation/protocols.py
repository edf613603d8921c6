"""What is drawn to be scored: groups of subjects in a few places, or the DreamBooth data set's prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from tara.errors import TaraError, nearest
from tara.evaluation.subjects import Subject, part_of
from tara.inference.binding import ActiveAdapter, check_named
from tara.inference.provenance import UsedFile
from tara.training.data.dreambooth import LIVE_CLASSES, TABLE, subject_of

SUBJECTS = "{subjects}"
PROMPTS = ("a photo of {subjects}", "{subjects} on the beach", "{subjects} in the snow", "{subjects} on the street")
"""Of groups; they name places that every base knows, toyland's too."""
LIVING, OBJECTS = "living subjects", "objects"


@dataclass(frozen=True, kw_only=True, eq=False)
class Role:
    """A subject and the adapter that has learned it."""

    subject: Subject
    active: ActiveAdapter
    file: UsedFile


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A prompt, numbered among those of its subjects, and the subjects that it names."""

    roles: tuple[Role, ...]
    prompt: str
    number: int
    part: str

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """Who should be in its pictures."""
        return tuple(role.subject for role in self.roles)


def cast(
    active_adapters: Sequence[ActiveAdapter], files: Sequence[UsedFile], subjects: Sequence[Subject]
) -> list[Role]:
    """Every adapter with its subject.

    Raises:
        TaraError: when an adapter is a style, nobody has said what it listens to, or adapters and photos do not match.
    """
    check_named(active_adapters)
    by_name = {subject.name.casefold(): subject for subject in subjects}
    roles: list[Role] = []
    for active, file in zip(active_adapters, files, strict=True):
        name = f"{active.rare_word} {active.class_word}"
        if active.adapter.card.is_style:
            raise TaraError(f"{active.name} is a style, which no part of a picture shows by itself. Leave it out.")
        if name.casefold() not in by_name:
            raise TaraError(f"Nobody has said where the photos of '{name}' are. Add --references '{name}=FOLDER'.")
        roles.append(Role(subject=by_name.pop(name.casefold()), active=active, file=file))
    if by_name:
        known = ", ".join(role.subject.name for role in roles) or "none"
        raise TaraError(f"There is no adapter of '{next(iter(by_name))}', only of: {known}. Add it with --adapter.")
    return roles


def groups(roles: Sequence[Role], listed: Sequence[str] = (), prompts: Sequence[str] = PROMPTS) -> list[Scene]:
    """Several subjects in one picture: all pairs, or those groups that are listed.

    Args:
        roles: everybody.
        listed: groups such as ``xlo+szn``, of any size.
        prompts: with ``{subjects}``, where "a xlo dog and a szn cat" will stand.

    Raises:
        TaraError: when a group names an unknown subject, there is none, or a prompt has no ``{subjects}``.
    """
    for prompt in prompts:
        if SUBJECTS not in prompt:
            raise TaraError(f"The prompt '{prompt}' does not say where the subjects stand. Write {SUBJECTS} there.")
    chosen = [_group(text, roles) for text in listed] or list(combinations(roles, 2))
    if not chosen:
        raise TaraError(f"{len(roles)} subjects make no pair. Give two --adapter or more.")
    return [
        Scene(
            roles=group,
            prompt=prompt.replace(SUBJECTS, together([role.subject for role in group])),
            number=number,
            part=part_of([role.subject for role in group]),
        )
        for group in chosen
        for number, prompt in enumerate(prompts)
    ]


def dreambooth(roles: Sequence[Role]) -> list[Scene]:
    """Each subject alone in the data set's prompts, 25 for things and 25 for living subjects.

    The table is found beside the folder of the subject's photos (Ruiz et al., DreamBooth, CVPR 2023).

    Raises:
        TaraError: when there is no table, or it has no prompts.
    """
    scenes: list[Scene] = []
    for role in roles:
        table = subject_of(role.subject.photos)
        if table is None or not table.prompts:
            raise TaraError(
                f"There is no {TABLE} with prompts beside {role.subject.photos}. Put the data set's table there."
            )
        part = LIVING if table.class_word in LIVE_CLASSES else OBJECTS
        words = {"{rare_word}": role.active.rare_word, "{class_word}": role.active.class_word}
        for number, prompt in enumerate(table.prompts):
            for place, word in words.items():
                prompt = prompt.replace(place, word)
            scenes.append(Scene(roles=(role,), prompt=prompt, number=number, part=part))
    return scenes


def together(subjects: Sequence[Subject]) -> str:
    """For instance "a xlo dog, a szn cat and a qev car"."""
    *first, last = [f"a {subject.name}" for subject in subjects]
    return f"{', '.join(first)} and {last}" if first else last


def _group(text: str, roles: Sequence[Role]) -> tuple[Role, ...]:
    names = {role.subject.rare_word.casefold(): role for role in roles}
    names |= {role.subject.name.casefold(): role for role in roles}
    found: list[Role] = []
    for part in text.split("+"):
        role = names.get(part.strip().casefold())
        if role is None or role in found:
            why = "names a subject twice" if role else f"names '{part}', of which there is no adapter"
            raise TaraError(f"The group '{text}' {why}.{nearest(part, names)} Write it like xlo+szn.")
        found.append(role)
    return tuple(found)
