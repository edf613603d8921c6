"""The base's own picture: the prompt with class words only, without any adapter."""

from tara.composers.interface import Composer, Uses


def class_words(prompt: str, uses: Uses) -> str:
    """The prompt without rare words: ``a xlo dog`` becomes ``a dog``, and a lone ``xlo`` becomes ``dog``.

    Raises:
        TaraError: when an adapter's rare word is unknown, missing or ambiguous.
    """
    from tara.binding import find_words  # here, because it brings torch, and composers are named without it

    found = [(span, use.class_word) for use, spans in find_words(prompt, uses) for span in spans]
    for (first, end), kind in sorted(found, reverse=True):  # from the end, so that places before it stay
        rest = prompt[end:]
        prompt = prompt[:first] + (rest.lstrip() if _begins_with(kind, rest) else kind + rest)
    return prompt


def _begins_with(kind: str, text: str) -> bool:
    """Also with its plural; nothing is the beginning of everything."""
    kind, text = (" ".join(part.split()).casefold() for part in (kind, text))
    return text.startswith(kind)


def _no_adapters(uses: Uses) -> tuple[Uses, ...]:
    return ((),)


NONE = Composer(meaning="no adapters, class words only", everywhere=False, members=_no_adapters, prompt=class_words)
