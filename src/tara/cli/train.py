"""`tara train`: photos to adapter files, from flags or from a TOML recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from tara.cli.flags import given, with_flags
from tara.config import ConceptSettings, Recipe, TrainSettings, concept_settings, read_recipe, train_settings
from tara.errors import TaraError

RENAMED = {"captions": "caption"}
"""A concept's caption templates are given one by one; --captions is the source of captions."""


def _recipe(recipe: Path | None, values: dict[str, Any]) -> Recipe:
    concept = given(ConceptSettings, values, RENAMED)
    settings = given(TrainSettings, values, {})
    if recipe is None:
        return Recipe(settings=train_settings(**settings), concepts=(concept_settings(**concept),))
    if concept:
        flags = ", ".join("--" + RENAMED.get(name, name).replace("_", "-") for name in concept)
        raise TaraError(f"{flags} would describe a concept, but {recipe} does that already. Give one or the other.")
    return read_recipe(recipe, **settings)


def _train(
    recipe: Annotated[Path | None, Parameter(help="TOML file with [settings] and [[concept]] tables")] = None,
    /,
    *,
    resume: Annotated[bool, Parameter(negative=(), help="Go on from the run folder's last checkpoint")] = False,
    **values: Any,
) -> None:
    """Learn one or several concepts from photos: one small adapter file for each."""
    _recipe(recipe, values)
    del resume


train = with_flags(_train, {ConceptSettings: RENAMED, TrainSettings: {}}, ["The concept", "Training"])
