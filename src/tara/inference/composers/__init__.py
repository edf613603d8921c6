"""Composers by name: ways to combine several adapters in one prompt. One file each, one signature."""

from __future__ import annotations

from tara.errors import TaraError, nearest
from tara.inference.composers.composer import Adapters, Composer, Turns
from tara.inference.composers.merging import DARE, TIES
from tara.inference.composers.none import NONE
from tara.inference.composers.regions import REGIONS
from tara.inference.composers.sequential import COMPOSITE, SWITCH
from tara.inference.composers.sum import SUM
from tara.inference.composers.tara import TARA

__all__ = ["COMPOSERS", "Adapters", "Composer", "Turns", "composer_named", "default_composer"]

COMPOSERS: dict[str, Composer] = {
    "tara": TARA,
    "regions": REGIONS,
    "sum": SUM,
    "switch": SWITCH,
    "composite": COMPOSITE,
    "ties": TIES,
    "dare": DARE,
    "none": NONE,
}
"""All of them, in the order in which they are shown."""


def default_composer(adapters: Adapters) -> Composer:
    """Regions for several subjects of which one acts outside the text's keys and values, which no mask can hold."""
    subjects = [active for active in adapters if not active.is_style]
    return REGIONS if len(subjects) > 1 and any(active.global_strength for active in subjects) else TARA


def composer_named(composer: str | Composer) -> Composer:
    """A composer by its name; one that is given itself stays what it is.

    Raises:
        TaraError: for an unknown name.
    """
    if isinstance(composer, Composer):
        return composer
    if composer not in COMPOSERS:
        hint = nearest(composer, COMPOSERS)
        raise TaraError(f"composer is '{composer}'.{hint} Choose one of {', '.join(COMPOSERS)}.")
    return COMPOSERS[composer]
