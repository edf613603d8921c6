"""A whole training run, for Python and the command line."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch

from tara.adapters.adapter import Adapter, load_adapter
from tara.errors import TaraError, warn
from tara.families.base import Base
from tara.families.loading import best_device, load_base
from tara.families.settings import BaseSettings
from tara.storage.hub import upload, with_owner
from tara.storage.lock import refuse_locked
from tara.storage.outputs import is_finished
from tara.storage.validation import takes
from tara.training.checkpoints import TrainingState, load_checkpoint
from tara.training.concept_settings import ConceptSettings
from tara.training.distributed import Processes, join
from tara.training.inputs import TrainingInputs, check_inputs
from tara.training.loop import Training
from tara.training.run.folder import RunFolder, check_outputs
from tara.training.run.generated import OnClassImage, class_folders, generate_class_images
from tara.training.run.recipe_files import RUN_SETTINGS, comparable, earlier_settings, read_recipe
from tara.training.run.steps import OnStep, Run, resume_command
from tara.training.settings import Recipe, TrainSettings, concept_settings, train_settings

OnInputs = Callable[[TrainingInputs], object]
"""Called with the concepts, settings, photos and base of a training that is about to begin."""
OnUpload = Callable[[str], object]
"""Called with the address of what has been uploaded."""


@takes(ConceptSettings, TrainSettings)
def train(
    *,
    images: str | Path,
    rare_word: str | None = None,
    class_word: str | None = None,
    base: str | Path | Base | Any,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_step: OnStep | None = None,
    **settings: Any,
) -> Adapter:
    """Train one adapter and write it, with its run folder ``<out stem>.run`` beside it.

    Args:
        images: folder with 3 to 5 photos of the concept.
        rare_word: rare word that will stand for it, such as ``xlo``; kohya's folders, ``10_xlo dog``, name it.
        class_word: class word, such as ``dog``; kohya's folders name it, and so does DreamBooth's table.
        base: ``sd15``, ``sdxl``, a folder, a checkpoint, a hub id, or a loaded diffusers pipeline (left as it is).
        out: the ``.safetensors`` file to write; ``RAREWORD-CLASSWORD.safetensors`` when None.
        resume, overwrite, on_step: see `train_recipe`.
        settings: further fields of `tara.training.settings.ConceptSettings` and `tara.training.settings.TrainSettings`.

    Raises:
        TaraError, TrainingInterrupted: see `train_recipe`.
    """
    loaded = None if isinstance(base, str | Path) else base
    more = {name: settings.pop(name) for name in ConceptSettings.model_fields if name in settings}
    concept = concept_settings(images=images, rare_word=rare_word, class_word=class_word, out=out, **more)
    chosen = train_settings(base=str(base) if loaded is None else _name(loaded), **settings)
    recipe = Recipe(settings=chosen, concepts=(concept,))
    (adapter,) = train_recipe(recipe, loaded, resume=resume, overwrite=overwrite, on_step=on_step)
    return adapter


def train_recipe(
    recipe: Recipe,
    base: Base | Any | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_inputs: OnInputs | None = None,
    on_step: OnStep | None = None,
    on_class_image: OnClassImage | None = None,
    on_upload: OnUpload | None = None,
) -> list[Adapter]:
    """Train all concepts of a recipe together and write the run folder and the adapters.

    `tara.train`, `tara train` and the published scripts call this.

    If a launcher has started several processes, each computes its share of every step, and the main process writes.

    Args:
        recipe: settings and concepts.
        base: a base or loaded pipeline instead of the one that the settings name.
        resume: continue from the run folder's last checkpoint, if there is one.
        overwrite: start from step 0 even if there is an unfinished training, or an adapter with other settings.
        on_inputs: called in the main process with the inputs, after they have been read and checked.
        on_step: called after each step.
        on_class_image: called after each class image that is generated for prior preservation.
        on_upload: called with the URL on the hub. If the upload fails, a TaraWarning says what to do.

    Returns:
        The adapters, in the order of the concepts. If they exist and were trained with the same settings, they are
            loaded, with a TaraWarning.

    Raises:
        TaraError: for invalid photos, words, settings, base or output.
        TrainingInterrupted: on Ctrl-C during the steps, after a checkpoint has been written.
        OtherProcessEnded: when the run cannot go on, because one of its other processes has ended.
    """
    folder, processes = RunFolder(recipe.run_folder), join(_device(recipe, base))
    check_outputs(recipe)
    last, asked = folder.last_checkpoint() if resume else None, comparable(recipe)
    if last is None and not overwrite:
        _check_earlier_run(folder, recipe)
        earlier = earlier_settings(folder.path, asked)
        finished = [is_finished(concept.file, asked, earlier) for concept in recipe.concepts]
        for concept, step in product(recipe.concepts, recipe.settings.kept_steps()):
            is_finished(concept.file_at(step), asked, earlier)
        if all(finished):
            warn(f"Already trained with these settings: {', '.join(str(c.file) for c in recipe.concepts)}.")
            return [load_adapter(concept.file) for concept in recipe.concepts]
    if processes.is_main:
        refuse_locked(folder.path)
    state = None if last is None else load_checkpoint(last)
    with _threads(recipe.settings.threads):
        inputs = check_inputs(recipe.concepts, recipe.settings, lambda: _base(recipe, base))
        processes.barrier()  # no process has refused the inputs
        if on_inputs is not None and processes.is_main:
            on_inputs(inputs)
        training = _prepared(recipe, inputs, folder, state, processes, on_class_image)
        run = Run(training=training, folder=folder, asked=asked, on_step=on_step or (lambda _: None))
        # all checks of all processes have passed, so files of an earlier run may be deleted
        processes.barrier()
        repository = with_owner(recipe.repository) if recipe.settings.push_to_hub and processes.is_main else None
        if processes.is_main:
            run.in_main_process(repository)
        else:
            run.in_other_process()
        processes.barrier()  # the main process has written the files
    if repository is not None:
        _upload(folder.hub, repository, on_upload)
    return training.adapters()


def _prepared(
    recipe: Recipe,
    inputs: TrainingInputs,
    folder: RunFolder,
    state: TrainingState | None,
    processes: Processes,
    on_class_image: OnClassImage | None,
) -> Training:
    """The training at step 0 or at the step of ``state``, with all class images generated."""
    done, steps = (0 if state is None else state.step), inputs.settings.steps
    if done > steps:
        raise TaraError(f"'{folder.path}' is at step {done}, but steps is {steps}. Set steps to {done} or more.")
    if processes.is_main:
        generate_class_images(recipe, inputs.base, on_class_image)
    processes.barrier()  # the main process has generated the class images
    training = Training(inputs, class_folders(recipe), processes)
    if state is not None:
        training.load(state)
    return training


def _upload(folder: Path, repository: str, on_upload: OnUpload | None) -> None:
    try:
        address = upload(folder, repository)
    except TaraError as failure:  # a failed upload must not end the training
        warn(str(failure))
    else:
        if on_upload is not None:
            on_upload(address)


def _device(recipe: Recipe, base: Base | Any | None) -> str:
    """The device of a run: that of a loaded base, otherwise that of the settings."""
    if base is None:
        return recipe.settings.device or best_device()
    return torch.device(getattr(base, "device", "cpu")).type


def _base(recipe: Recipe, base: Base | Any | None) -> Base:
    if base is not None:
        return base if isinstance(base, Base) else Base(base)
    settings = recipe.settings
    if settings.precision == "fp16" and (settings.device or best_device()) == "cpu":
        raise TaraError("precision fp16 needs a GPU. Use bf16 or fp32 on a CPU.")
    options = settings.model_dump(include=BaseSettings.model_fields.keys() - {"base"})
    return load_base(settings.base, device=settings.device, **options)


def _check_earlier_run(folder: RunFolder, recipe: Recipe) -> None:
    """Raises TaraError if the run folder has an unfinished training, or a finished one whose adapters are missing."""
    done = folder.steps_done()
    if not done:
        return
    anew = "To replace it, give --overwrite (overwrite=True in Python), or choose another out."
    try:
        wanted = read_recipe(folder.path).settings.steps
    except TaraError as failure:
        unreadable = f"'{folder.path}' has a training ({done} steps) whose {RUN_SETTINGS} cannot be read"
        raise TaraError(f"{unreadable}. {anew}") from failure
    if done < wanted or not all(concept.file.exists() for concept in recipe.concepts):
        state = "an unfinished training" if done < wanted else "a training without its adapters"
        resume = f"To resume it, run `{resume_command(folder.path)}`."
        raise TaraError(f"'{folder.path}' has {state} ({done} steps). {resume} {anew}")


def _name(base: Any) -> str:
    pipe: Any = base.pipe if isinstance(base, Base) else base
    return str(getattr(pipe, "name_or_path", "") or type(pipe).__name__)


@contextmanager
def _threads(count: int | None) -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
