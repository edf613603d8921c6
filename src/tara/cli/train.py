"""`tara train`: trains adapters from photos, by flags or by a TOML recipe."""

from __future__ import annotations

import shlex
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tara.cli.options import of_model, require, with_options
from tara.cli.terminal import only_our_bars, progress, say
from tara.errors import TaraError
from tara.report.page import PAGE
from tara.training.concept_settings import ConceptSettings, folder_words
from tara.training.prompts import together
from tara.training.run.recipe_files import read_recipe
from tara.training.settings import Recipe, TrainSettings, concept_settings, train_settings

if TYPE_CHECKING:
    from tara.adapters.adapter import Adapter
    from tara.training.inputs import TrainingInputs
    from tara.training.loop import StepRecord

RECENT_STEPS = 20  # one step's loss says more about its timestep than about the training


@with_options({ConceptSettings: "The concept", TrainSettings: "Training"})
def train(
    recipe: Annotated[
        Path | None, Parameter(help="TOML file with [settings] and [[concept]] tables, or a run folder (with --resume)")
    ] = None,
    /,
    *,
    resume: Annotated[bool, Parameter(negative=(), show_default=False, help="Resume from the last checkpoint")] = False,
    overwrite: Annotated[
        bool,
        Parameter(
            negative=(),
            show_default=False,
            help="Start again: replace an unfinished training, or an adapter with other settings",
        ),
    ] = False,
    **values: Any,
) -> None:
    """Train one adapter file for each concept, from photos."""
    chosen = recipe_of(recipe, values)
    adapters = train_with_progress(chosen, resume=resume, overwrite=overwrite)
    for concept, adapter in zip(chosen.concepts, adapters, strict=True):
        say(f"{concept.file} acts on '{adapter.card.rare_word} {adapter.card.class_word}'.")
    say(f"Look at {chosen.run_folder / PAGE}.")
    say(f"Generate images: {shlex.join(_next_command(chosen))}")


def recipe_of(recipe: Path | None, values: dict[str, Any]) -> Recipe:
    """What is to be trained, from the flags by the names of their parameters and from a file or run folder, if any."""
    concept, settings = of_model(ConceptSettings, values), of_model(TrainSettings, values)
    if recipe is None:
        known = folder_words(concept["images"]) if "images" in concept else {}
        require("train", known | concept | settings, "images", "rare_word", "class_word", "base")
        return Recipe(settings=train_settings(**settings), concepts=(concept_settings(**concept),))
    if concept:
        flags = ", ".join("--" + name.replace("_", "-") for name in concept)
        raise TaraError(f"{flags} describe a concept, and so does {recipe}. Give one or the other.")
    return read_recipe(recipe, **settings)


def _next_command(recipe: Recipe) -> list[str]:
    """The `tara generate` command that shows what was learned."""
    prompt = together((f"{concept.rare_word} {concept.class_word}", concept.is_style) for concept in recipe.concepts)
    adapters = [part for concept in recipe.concepts for part in ("-a", str(concept.file))]
    return ["tara", "generate", prompt, *adapters, "--base", recipe.settings.base]


def train_with_progress(recipe: Recipe, *, resume: bool, overwrite: bool) -> list[Adapter]:
    """Train behind a progress bar."""
    from tara.training.resolved import settings_summary
    from tara.training.run.run import train_recipe

    only_our_bars()
    recent: deque[float] = deque(maxlen=RECENT_STEPS)
    addresses: list[str] = []
    with progress("Training") as advance:

        def on_inputs(inputs: TrainingInputs) -> None:
            say(settings_summary(inputs.settings, inputs.base))
            advance(0, "", inputs.settings.steps)

        def on_step(record: StepRecord) -> None:
            recent.append(record.loss)
            advance(record.index, f"loss {sum(recent) / len(recent):.4f}")

        adapters = train_recipe(
            recipe,
            resume=resume,
            overwrite=overwrite,
            on_inputs=on_inputs,
            on_step=on_step,
            on_class_image=lambda there, wanted: advance(0, f"class images {there}/{wanted}"),
            on_upload=addresses.append,
        )
    for address in addresses:
        say(f"On the hub: {address}")
    return adapters
