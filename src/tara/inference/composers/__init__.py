"""Composers by name: the ways to draw one prompt with several adapters."""

from __future__ import annotations

from tara.errors import TaraError, nearest
from tara.inference.composers.composite import COMPOSITE
from tara.inference.composers.dare import DARE
from tara.inference.composers.interface import Composer, Turn, Uses
from tara.inference.composers.none import NONE
from tara.inference.composers.sum import SUM
from tara.inference.composers.switch import SWITCH
from tara.inference.composers.tara import TARA
from tara.inference.composers.ties import TIES

__all__ = ["COMPOSERS", "Composer", "Turn", "Uses", "check_composable", "composer_named"]

COMPOSERS: dict[str, Composer] = {
    "tara": TARA,
    "sum": SUM,
    "switch": SWITCH,
    "composite": COMPOSITE,
    "ties": TIES,
    "dare": DARE,
    "none": NONE,
}
"""All of them, in the order in which they are shown."""


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


def check_composable(composer: Composer, uses: Uses) -> None:
    """Refuse adapters that a composer has no way to use.

    Raises:
        TaraError: for a textual inversion, which is a word's embedding, with a composer of plain LoRAs.
    """
    for use in uses:
        if composer.everywhere and use.adapter.embeddings:
            raise TaraError(
                f"{use.name} is a textual inversion, which acts on its word alone. Compose it with 'tara', or leave it "
                "out."
            )
