"""Who should be in a picture: subjects, their photos, and where a prompt names them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from tara.core.tokens import with_class_words, word_spans
from tara.errors import TaraError
from tara.training.data.dreambooth import subject_of

SAME_CLASS, OTHER_CLASSES = "same class", "different classes"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Somebody's dog: the rare word that stands for it, its class word, and the folder of its photos."""

    word: str
    kind: str
    photos: Path

    @property
    def name(self) -> str:
        """How a prompt calls it."""
        return f"{self.rare_word} {self.class_word}"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture file and what should be in it."""

    path: Path
    series: str
    """What it is compared as part of: a folder, or a composer."""
    prompt: str
    seed: int | None
    subjects: tuple[Subject, ...]
    part: str = ""
    """The kind of prompt, such as ``same class``; figures are also given for each."""

    @property
    def group(self) -> str:
        """Its subjects as one name, whatever their order."""
        return " + ".join(sorted(subject.name for subject in self.subjects))

    @property
    def plain_prompt(self) -> str:
        """The prompt with class words in place of rare words, which mean nothing to a text encoder."""
        named = ((span, one.class_word) for one in self.subjects for span in word_spans(self.prompt, one.rare_word))
        return with_class_words(self.prompt, named)


def part_of(subjects: Sequence[Subject]) -> str:
    """Whether some of several subjects share a class, the hardest case; empty for one alone."""
    if len(subjects) < 2:
        return ""
    same = any(one.class_word.casefold() == other.class_word.casefold() for one, other in combinations(subjects, 2))
    return SAME_CLASS if same else OTHER_CLASSES


def asked_for(prompt: str, subjects: Sequence[Subject]) -> tuple[Subject, ...]:
    """The subjects that a prompt names by their rare words; of a prompt without any, those whose class word it holds.

    Subjects that share a rare word are told apart by their class words.
    """

    def named(subject: Subject) -> bool:
        shared = sum(other.rare_word.casefold() == subject.rare_word.casefold() for other in subjects) > 1
        return bool(word_spans(prompt, subject.rare_word)) and (
            not shared or bool(word_spans(prompt, subject.class_word))
        )

    by_word = tuple(subject for subject in subjects if named(subject))
    return by_word or tuple(subject for subject in subjects if word_spans(prompt, subject.class_word))


def read_subjects(references: Sequence[str], known: Sequence[tuple[str, str]] = ()) -> tuple[Subject, ...]:
    """Subjects from ``WORD=FOLDER`` or ``WORD KIND=FOLDER``, the folder of their photos.

    Args:
        references: as above. Without a class word it is taken from ``known``, or from a DreamBooth table beside the
            folder.
        known: (rare word, class word) of adapters.

    Raises:
        TaraError: when one is not of that form, its class word is not known, or two are called the same.
    """
    subjects = tuple(_subject(text, known) for text in references)
    names = [subject.name.casefold() for subject in subjects]
    for subject in subjects:
        if names.count(subject.name.casefold()) > 1:
            raise TaraError(f"Two --references are of '{subject.name}'. Give one folder of photos for each subject.")
    return subjects


def _subject(text: str, known: Sequence[tuple[str, str]]) -> Subject:
    name, equals, folder = (part.strip() for part in text.partition("="))
    if not (name and equals and folder):
        raise TaraError(f"--references '{text}' is not WORD=FOLDER. Write it like 'xlo=photos/rex'.")
    photos = Path(folder)
    for word, kind in known:
        if name.casefold() in (word.casefold(), f"{rare_word} {class_word}".casefold()):
            return Subject(rare_word=word, class_word=kind, photos=photos)
    word, _, kind = name.partition(" ")
    if not kind:
        table = subject_of(photos)
        kind = table.class_word if table else ""
    if not kind:
        raise TaraError(
            f"--references '{text}' does not say what {rare_word} is. Write the class word behind it, like "
            f"'{rare_word} dog={folder}'."
        )
    return Subject(rare_word=word, class_word=" ".join(kind.split()), photos=photos)
