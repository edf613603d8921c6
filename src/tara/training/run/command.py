"""The command that trains a recipe."""

import shlex

from tara.report.command_line import flags
from tara.training.settings import Recipe


def train_command(recipe: Recipe) -> str:
    """The command that trains a recipe: by flags for one concept, from its run folder for several.

    Told from the settings, because a training is also begun from Python, and goes on by other commands than it began.
    """
    first, *others = recipe.concepts
    described = [*flags(first), *flags(recipe.settings)]
    return shlex.join(["tara", "train", *([str(recipe.run_folder), "--overwrite"] if others else described)])
