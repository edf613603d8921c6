"""Caption templates: the training phrase, and varied ones around it; and what to write when all is learned."""

from collections.abc import Iterable

SUBJECT_PHRASE = "a photo of a {word} {kind}"
STYLE_PHRASE = "a picture in {word} {kind}"

# A rare word's embedding moves with its position and neighbours: these move it, and leave the picture's content open.
VARIED_SUBJECT_CAPTIONS = (
    "a photo of a {word} {kind}",
    "a {word} {kind}",
    "the {word} {kind}",
    "a picture of the {word} {kind}",
    "a close view of a {word} {kind}",
    "there is a {word} {kind} in this picture",
    "here stands a {word} {kind}",
    "someone shows us one {word} {kind}",
    "a {word} {kind} on the grass",
    "a {word} {kind} on the beach",
    "a {word} {kind} in a room",
    "a {word} {kind} in front of a wall",
    "in the street a {word} {kind} waits",
    "on a sunny day a {word} {kind} is seen",
    "a cat and a {word} {kind}",
    "a {word} {kind} and a dog",
    "a car next to a {word} {kind}",
    "a {word} {kind} beside a house",
    "a tree and a {word} {kind} on the grass",
    "a {word} {kind} and a person in a room",
)
VARIED_STYLE_CAPTIONS = (
    "a picture in {word} {kind}",
    "in {word} {kind}",
    "a scene in {word} {kind}",
    "a cat in {word} {kind}",
    "a dog on the grass in {word} {kind}",
    "a house in {word} {kind}",
    "a car in the street in {word} {kind}",
    "a person and a dog in {word} {kind}",
    "a cat and a tree on the beach in {word} {kind}",
    "{word} {kind}, a view of a room",
)


def together(concepts: Iterable[tuple[str, bool]]) -> str:
    """A prompt with every concept in it, given its words and whether it is a style: ``a xlo dog and a szn cat``."""
    concepts = list(concepts)
    things = " and ".join(f"a {words}" for words, is_style in concepts if not is_style)
    return " ".join([things or "a picture", *(f"in {words}" for words, is_style in concepts if is_style)])
