"""The families that tara knows: a new one is a file beside this one and a line in each of the two tables."""

from collections.abc import Callable, Mapping
from typing import Any

from tara.errors import TaraError
from tara.families.family import Family
from tara.families.stable_diffusion import SD1, SD2, SDXL, stable_diffusion

FAMILIES: tuple[Family, ...] = (SD1, SD2, SDXL)
"""Those with released bases."""
RECOGNISERS: tuple[Callable[[Any], Family | None], ...] = (stable_diffusion,)
"""From a loaded pipeline to its family."""


def family_of(pipe: Any) -> Family:
    """The family of a loaded pipeline.

    Raises:
        TaraError: when it is of no known family, or has parts that adapters cannot work on.
    """
    for recognise in RECOGNISERS:
        if (family := recognise(pipe)) is not None:
            family.check(pipe)
            return family
    raise TaraError(
        f"A {type(pipe).__name__} is of no family that tara knows ({', '.join(f.name for f in FAMILIES)}). Use a Stable "
        "Diffusion 1.x, 2.x or SDXL pipeline."
    )


def family_named(name: str) -> Family | None:
    """A family by the name that adapter files give it; one that was named after its width is like its relatives."""
    known = {family.name: family for family in FAMILIES}
    return known.get(name) or (known["sdxl"] if name.startswith("sdxl-") else None)


def family_of_widths(text_projections: Mapping[str, int]) -> str:
    """The name of the family that an adapter's text projections (layer to d_in) fit; empty when they do not tell."""
    widths = set(text_projections.values())
    return next((family.name for family in FAMILIES if widths == {family.text_width}), "")
