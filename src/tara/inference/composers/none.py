"""The base's own picture: the prompt with class words only, without any adapter."""

from tara.core.tokens import with_class_words
from tara.inference.composers.interface import Composer, Uses


def class_words(prompt: str, uses: Uses) -> str:
    """The prompt with class words in place of the adapters' rare words.

    Raises:
        TaraError: when an adapter's rare word is unknown, missing or ambiguous.
    """
    from tara.inference.binding import find_words  # here, because it brings torch, and composers are named without it

    return with_class_words(
        prompt, ((span, use.class_word) for use, spans in find_words(prompt, uses) for span in spans)
    )


def _no_adapters(uses: Uses) -> tuple[Uses, ...]:
    return ((),)


NONE = Composer(meaning="no adapters, class words only", everywhere=False, members=_no_adapters, prompt=class_words)
