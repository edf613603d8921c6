"""The supported families. A new family is a file in this folder and an entry in both tables here."""

from collections.abc import Callable, Mapping
from typing import Any

from tara.errors import TaraError
from tara.families.family import Family
from tara.families.stable_diffusion import SD1, SD2, SDXL, USE_A_BASE, stable_diffusion

FAMILIES: tuple[Family, ...] = (SD1, SD2, SDXL)
RECOGNISERS: tuple[Callable[[Any], Family | None], ...] = (stable_diffusion,)
"""Functions from a loaded pipeline to its family."""


def family_of(pipe: Any) -> Family:
    """The family of a loaded pipeline. Raises TaraError if no family recognises it."""
    for recognise in RECOGNISERS:
        if (family := recognise(pipe)) is not None:
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise TaraError(f"A {type(pipe).__name__} belongs to no family that tara knows ({known}). {USE_A_BASE}")


def family_named(name: str) -> Family | None:
    """The family with this name. ``sdxl-64``, with another text width, gives ``sdxl``. None if unknown."""
    return next((family for family in FAMILIES if family.name in (name, name.partition("-")[0])), None)


def family_of_widths(text_projections: Mapping[str, int]) -> str:
    """The name of the family with the input width of an adapter's text projections; empty if no family has it."""
    widths = set(text_projections.values())
    return next((family.name for family in FAMILIES if widths == {family.text_width}), "")
