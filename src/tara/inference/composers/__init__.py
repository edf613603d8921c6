"""Composers by name: ways to combine several adapters in one prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tara.core.tokens import with_class_words
from tara.errors import TaraError, nearest
from tara.inference.composers.composer import Composer
from tara.inference.composers.merging import DARE, TIES
from tara.inference.composers.sequential import COMPOSITE, SWITCH

if TYPE_CHECKING:
    from tara.inference.active_adapter import ActiveAdapters

__all__ = ["COMPOSERS", "Composer", "composer_named", "default_composer", "replace_rare_words"]


def replace_rare_words(prompt: str, adapters: ActiveAdapters) -> str:
    """The prompt with class words in place of the adapters' rare words.

    Raises:
        TaraError: when an adapter's rare word is unknown, missing or ambiguous.
    """
    from tara.inference.binding import find_words  # here, because it brings torch, and composers are named without it

    return with_class_words(
        prompt, ((span, active.class_word) for active, spans in find_words(prompt, adapters) for span in spans)
    )


# in the order of help texts and messages
COMPOSERS: dict[str, Composer] = {
    # token-aware composition (TARA, arXiv 2508.08812)
    "tara": Composer(description="each adapter on the tokens of its rare word", masked=True),
    # see `tara.inference.confining`; FreeFuse (arXiv 2510.23515) and LoRAShop (arXiv 2505.23758) find regions in the
    # same way, in passes of their own
    "regions": Composer(description="each adapter in the region of its subject", regional=True),
    # W + sum_c w_c s_c B_c A_c in every layer, for every token of every row; text keys and values likewise
    "sum": Composer(description="summed LoRAs, on all tokens"),
    "switch": SWITCH,
    "composite": COMPOSITE,
    "ties": TIES,
    "dare": DARE,
    "none": Composer(
        description="no adapters, rare words removed",
        masked=True,
        adapters=lambda adapters: (),
        prompt=replace_rare_words,
    ),
}


def default_composer(adapters: ActiveAdapters) -> Composer:
    """The composer `regions` if there are several subjects and at least one has a global part, else `tara`.

    A token mask cannot confine a global part.
    """
    subjects = [active for active in adapters if not active.is_style]
    several = len(subjects) > 1 and any(active.global_strength for active in subjects)
    return COMPOSERS["regions" if several else "tara"]


def composer_named(composer: str | Composer) -> Composer:
    """The composer of this name. A `Composer` is returned unchanged.

    Raises:
        TaraError: for an unknown name.
    """
    if isinstance(composer, Composer):
        return composer
    if composer not in COMPOSERS:
        hint = nearest(composer, COMPOSERS)
        raise TaraError(f"composer is '{composer}'.{hint} Choose one of {', '.join(COMPOSERS)}.")
    return COMPOSERS[composer]
