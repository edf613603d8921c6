"""The subjects that an image should show: their photos, and where a prompt names them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from tara.core.tokens import with_class_words, word_spans
from tara.errors import TaraError
from tara.storage.dreambooth import subject_of

SAME_CLASS, OTHER_CLASSES = "same class", "different classes"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A subject: rare word and class word, which together are its name, and the folder of its photos."""

    rare_word: str
    class_word: str
    photos: Path

    @property
    def name(self) -> str:
        return f"{self.rare_word} {self.class_word}"


@dataclass(frozen=True)
class ImageRecord:
    """An image file: its series (such as a composer), its prompt's category, and the subjects that it should show."""

    path: Path
    series: str
    prompt: str
    seed: int | None
    subjects: tuple[Subject, ...]
    category: str = ""

    @property
    def group(self) -> str:
        """One name for the image's subjects, independent of their order."""
        return " + ".join(sorted(subject.name for subject in self.subjects))

    @property
    def plain_prompt(self) -> str:
        """The prompt with class words in place of rare words, which CLIP's text encoder does not know."""
        named = (
            (span, subject.class_word)
            for subject in self.subjects
            for span in word_spans(self.prompt, subject.rare_word)
        )
        return with_class_words(self.prompt, named)


def class_category(subjects: Sequence[Subject]) -> str:
    """Name of the category: two subjects share a class (the hardest case), or none do. Empty for a single subject."""
    if len(subjects) < 2:
        return ""
    same = any(
        subject.class_word.casefold() == other.class_word.casefold() for subject, other in combinations(subjects, 2)
    )
    return SAME_CLASS if same else OTHER_CLASSES


def prompted_subjects(prompt: str, subjects: Sequence[Subject]) -> tuple[Subject, ...]:
    """The subjects whose rare words are in the prompt; if there are none, those whose class words are in it.

    Subjects that share a rare word are distinguished by their class words.
    """

    def named(subject: Subject) -> bool:
        shared = sum(other.rare_word.casefold() == subject.rare_word.casefold() for other in subjects) > 1
        words = (subject.rare_word, subject.class_word) if shared else (subject.rare_word,)
        return all(word_spans(prompt, word) for word in words)

    by_rare_word = tuple(subject for subject in subjects if named(subject))
    return by_rare_word or tuple(subject for subject in subjects if word_spans(prompt, subject.class_word))


def read_subjects(references: Sequence[str], known: Sequence[tuple[str, str]] = ()) -> tuple[Subject, ...]:
    """Subjects from ``RARE_WORD=FOLDER`` or ``RARE_WORD CLASS_WORD=FOLDER``, the folder of their photos.

    A missing class word is taken from ``known``, (rare word, class word) of adapters, or from a DreamBooth
    table beside the folder.

    Raises:
        TaraError: when a reference has another form, its class word is unknown, or two subjects have the same name.
    """
    subjects = tuple(_subject(text, known) for text in references)
    names = [subject.name.casefold() for subject in subjects]
    for subject in subjects:
        if names.count(subject.name.casefold()) > 1:
            raise TaraError(f"Two --references are for '{subject.name}'. Give one folder of photos for each subject.")
    return subjects


def _subject(text: str, known: Sequence[tuple[str, str]]) -> Subject:
    name, equals, folder = (part.strip() for part in text.partition("="))
    if not (name and equals and folder):
        raise TaraError(f"--references '{text}' is not RARE_WORD=FOLDER. Write it like 'xlo=photos/rex'.")
    photos = Path(folder)
    for words in known:
        if name.casefold() in (words[0].casefold(), " ".join(words).casefold()):
            return Subject(rare_word=words[0], class_word=words[1], photos=photos)
    rare_word, _, class_word = name.partition(" ")
    if not class_word and (row := subject_of(photos)):
        class_word = row.class_word
    if not class_word:
        raise TaraError(
            f"--references '{text}' has no class word. Write it after the rare word, like '{rare_word} dog={folder}'."
        )
    return Subject(rare_word=rare_word, class_word=" ".join(class_word.split()), photos=photos)
