"""The published training scripts' flags to a recipe, and the recipe to one file."""

from __future__ import annotations

import json
import os
import shlex
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tara.cli.terminal import say
from tara.errors import TaraError, TaraWarning, nearest
from tara.storage.hub import ADAPTER_FILE, repository_name
from tara.training.distributed import launched
from tara.training.settings import ConceptSettings, Recipe, TrainSettings, concept_settings, train_settings

if TYPE_CHECKING:
    from tara.cli.published.script import Given

TARGETS = "attention"  # the projections that the published code trains
OPTIMIZERS = ("adamw", "prodigy")


def train(given: Given) -> None:
    """Train the adapter that the flags describe."""
    from tara.cli.progress import only_our_bars
    from tara.cli.train import watched

    recipe, resume = recipe_of(given), resumes(given)
    if given.without_effect:
        warnings.warn(f"Without effect here: {'; '.join(given.without_effect)}.", TaraWarning, stacklevel=2)
    if "wandb_key" in given:
        os.environ.setdefault("WANDB_API_KEY", given.text("wandb_key"))
    if "hub_token" in given:
        os.environ["HF_TOKEN"] = given.text("hub_token")
    settings = on_this_machine(recipe.settings)
    only_our_bars()
    watched(recipe.model_copy(update={"settings": settings}), resume=resume, overwrite=False)
    (concept,) = recipe.concepts
    say(f"{concept.file} listens to '{concept.rare_word}' and is a {concept.class_word}.")
    say(f"Draw it: {shlex.join(_next_command(settings.base, concept))}")


def recipe_of(given: Given) -> Recipe:
    """The recipe that a command line stands for.

    Raises:
        TaraError: for a value that cannot be, and without ``--use_lora`` where the script has that flag.
    """
    if any(flag.name == "use_lora" for flag in given.script.flags) and not given.value("use_lora"):
        raise TaraError("Only adapters are trained here, never the whole U-Net. Add --use_lora.")
    if "rank" in given and "lora_r" in given:
        raise TaraError("--rank and --lora_r are the same setting. Give one of them.")
    concept: dict[str, Any] = given.settings(ConceptSettings) | {"out": Path(given.text("output_dir")) / ADAPTER_FILE}
    settings: dict[str, Any] = given.settings(TrainSettings) | {
        "targets": TARGETS,
        "captions": "fixed",
        "alignment_loss": "l1" if given.value("with_align_loss") else "off",
        "preview_every": given.value("validation_steps") if "validation_prompt" in given else 0,
        "optimizer": _optimizer(given),
    }
    if settings["push_to_hub"]:
        # every output folder holds a file of the same name, so that does not tell them apart
        settings.setdefault("hub_model_id", repository_name(Path(given.text("output_dir")).absolute().name))
    if settings["optimizer"] == "prodigy" and "learning_rate" not in given:
        del settings["learning_rate"]  # it finds its own
    elif given.value("scale_lr"):
        settings["learning_rate"] *= settings["batch_size"] * settings["gradient_accumulation_steps"] * launched()
    return Recipe(settings=train_settings(**settings), concepts=(concept_settings(**concept),))


def resumes(given: Given) -> bool:
    """Whether to go on from the last checkpoint.

    Raises:
        TaraError: when another checkpoint is asked for.
    """
    wanted = given.text("resume_from_checkpoint")
    if not wanted:
        return False
    output = Path(given.text("output_dir")).absolute()
    states = (path for path in output.glob("*.run/checkpoints/step-*.safetensors") if path.stem[5:].isdecimal())
    newest = max(states, default=None)  # early adapters lie beside them, as step-000250-NAME
    if wanted != "latest" and Path(wanted).absolute() not in {output, *output.glob("*.run"), newest}:
        raise TaraError(
            f"--resume_from_checkpoint {wanted} is not the newest checkpoint in {output}. Give latest, to go on from "
            f"{newest.name if newest else 'there when there is one'}."
        )
    return True


def on_this_machine(settings: TrainSettings) -> TrainSettings:
    """The settings with what this machine lacks replaced by the nearest thing that it has, and one note about it."""
    from tara.families.loading import best_device

    on_cuda = (settings.device or best_device()).startswith("cuda")
    changes: dict[str, Any] = {}
    notes: list[str] = []
    if settings.precision == "fp16" and not on_cuda:
        changes["precision"] = "no"
        notes.append("fp16 needs CUDA, so the base is float32")
    if settings.optimizer == "adamw8bit" and not (on_cuda and find_spec("bitsandbytes")):
        changes["optimizer"] = "adamw"
        notes.append("8-bit AdamW needs CUDA and the package bitsandbytes, so AdamW has 32 bits")
    if notes:
        warnings.warn(f"{'; '.join(notes)}.", TaraWarning, stacklevel=2)
    return settings.model_copy(update=changes)


def _optimizer(given: Given) -> str:
    name = given.text("optimizer").lower()
    if name not in OPTIMIZERS:
        raise TaraError(f"There is no optimizer '{name}'.{nearest(name, OPTIMIZERS)} Choose AdamW or prodigy.")
    return "adamw8bit" if name == "adamw" and given.value("use_8bit_adam") else name


def _next_command(base: str, concept: ConceptSettings) -> list[str]:
    return [
        "python",
        "inference_tara.py",
        f"--pretrained_model_name_or_path={base}",
        f"--lora_list={json.dumps([str(concept.file)])}",
        f"--prompt=A {concept.rare_word} {concept.class_word}.",
    ]
