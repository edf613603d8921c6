"""The base without adapters: rare words are removed from the prompt."""

from tara.core.tokens import with_class_words
from tara.inference.composers.composer import Adapters, Composer


def class_words(prompt: str, adapters: Adapters) -> str:
    """The prompt with class words in place of the adapters' rare words.

    Raises:
        TaraError: when an adapter's rare word is unknown, missing or ambiguous.
    """
    from tara.inference.binding import find_words  # here, because it brings torch, and composers are named without it

    return with_class_words(
        prompt, ((span, active.class_word) for active, spans in find_words(prompt, adapters) for span in spans)
    )


NONE = Composer(
    description="no adapters, rare words removed", masked=True, adapters=lambda adapters: (), prompt=class_words
)
