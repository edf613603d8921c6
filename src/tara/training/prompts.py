"""The prompts of a training: captions, class images, previews, and one that names several concepts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tara.core.tokens import word_spans

if TYPE_CHECKING:
    from tara.training.concept_settings import ConceptSettings
    from tara.training.settings import TrainSettings

SUBJECT_PHRASE = "a photo of a {rare_word} {class_word}"
STYLE_PHRASE = "a picture in {rare_word} {class_word}"

# A rare word's embedding changes with its position and neighbours: these vary both, and leave the content open.
VARIED_SUBJECT_CAPTIONS = (
    "a photo of a {rare_word} {class_word}",
    "a {rare_word} {class_word}",
    "the {rare_word} {class_word}",
    "a picture of the {rare_word} {class_word}",
    "a close view of a {rare_word} {class_word}",
    "there is a {rare_word} {class_word} in this picture",
    "here stands a {rare_word} {class_word}",
    "someone shows us one {rare_word} {class_word}",
    "a {rare_word} {class_word} on the grass",
    "a {rare_word} {class_word} on the beach",
    "a {rare_word} {class_word} in a room",
    "a {rare_word} {class_word} in front of a wall",
    "in the street a {rare_word} {class_word} waits",
    "on a sunny day a {rare_word} {class_word} is seen",
    "a cat and a {rare_word} {class_word}",
    "a {rare_word} {class_word} and a dog",
    "a car next to a {rare_word} {class_word}",
    "a {rare_word} {class_word} beside a house",
    "a tree and a {rare_word} {class_word} on the grass",
    "a {rare_word} {class_word} and a person in a room",
)
VARIED_STYLE_CAPTIONS = (
    "a picture in {rare_word} {class_word}",
    "in {rare_word} {class_word}",
    "a scene in {rare_word} {class_word}",
    "a cat in {rare_word} {class_word}",
    "a dog on the grass in {rare_word} {class_word}",
    "a house in {rare_word} {class_word}",
    "a car in the street in {rare_word} {class_word}",
    "a person and a dog in {rare_word} {class_word}",
    "a cat and a tree on the beach in {rare_word} {class_word}",
    "{rare_word} {class_word}, a view of a room",
)


def together(concepts: Iterable[tuple[str, bool]]) -> str:
    """A prompt with every concept: ``a xlo dog and a szn cat``.

    A concept is given as (words, whether it is a style).
    """
    concepts = list(concepts)
    things = " and ".join(f"a {words}" for words, is_style in concepts if not is_style)
    return " ".join([things or "a picture", *(f"in {words}" for words, is_style in concepts if is_style)])


def class_phrase(concept: ConceptSettings, settings: TrainSettings) -> str:
    """Prompt of the class images: the user's, else the instance prompt without the rare word, ``a photo of a dog``."""
    if settings.class_prompt:
        return concept.fill(settings.class_prompt)
    phrase = concept.phrase
    for first, end in reversed(word_spans(phrase, concept.rare_word)):
        phrase = phrase[:first] + phrase[end:]
    return " ".join(phrase.split())


def preview_prompt(concept: ConceptSettings, settings: TrainSettings) -> str:
    """Prompt of a concept's previews: the user's, else the instance prompt."""
    return concept.fill(settings.preview_prompt) if settings.preview_prompt else concept.phrase
