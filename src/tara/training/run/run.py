"""A training run from photos to files: the run folder, checkpoints, previews, trackers and Ctrl-C."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from tara.adapters.adapter import Adapter
from tara.errors import TaraError, warn
from tara.families.base import Base
from tara.families.loading import best_device, load_base
from tara.storage.hub import upload, with_owner
from tara.storage.lock import claimed, refuse_claimed
from tara.training.concepts import TrainingInputs, check_inputs, class_phrase
from tara.training.distributed import Processes, join
from tara.training.loop import StepRecord, Training
from tara.training.nan_guard import NaNError
from tara.training.optimizers import check_optimizer
from tara.training.run.checkpoints import TrainingState, load_checkpoint
from tara.training.run.class_images import class_folders, generate_missing
from tara.training.run.folder import Metrics, RunFolder, check_outputs
from tara.training.run.hub_folder import write_hub_folder
from tara.training.run.interrupts import StopRequest, TrainingInterrupted, asked_to_stop, resume_command
from tara.training.run.page import write_run_page
from tara.training.run.previews import check_previews, lacks_previews, write_previews
from tara.training.run.recipe_files import RUN_SETTINGS, read_recipe
from tara.training.run.trackers import Tracker
from tara.training.settings import Recipe, concept_settings, distinct_names, train_settings

OnStep = Callable[[StepRecord], object]
OnClassImage = Callable[[int, int], object]
"""Called with the number of class images so far, and the number wanted."""
OnUpload = Callable[[str], object]
"""Called with the address of what has been uploaded."""


def train(
    *,
    images: str | Path,
    rare_word: str,
    class_word: str | None = None,
    base: str | Path | Base | Any,
    out: str | Path | None = None,
    name: str | None = None,
    prompt: str | None = None,
    captions: str | Sequence[str] | None = None,
    masks: str | Path | None = None,
    is_style: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    on_step: OnStep | None = None,
    **settings: Any,
) -> Adapter:
    """Train one adapter and write it, with its run folder ``<out stem>.run`` beside it.

    Args:
        images: folder with 3 to 5 photos of the concept.
        rare_word: rare word that will stand for it, such as ``xlo``.
        class_word: class word, such as ``dog``; may be left out in DreamBooth's folders, whose table knows it.
        base: ``sd15``, ``sdxl``, a folder, a checkpoint, a hub id, or a loaded diffusers pipeline (left as it is).
        out: the ``.safetensors`` file to write; ``RAREWORD-CLASSWORD.safetensors`` when None.
        name, prompt, masks, is_style: see `tara.training.settings.ConceptSettings`.
        captions: ``fixed``, ``varied``, or a list of templates with ``{rare_word}`` and ``{class_word}``.
        resume: go on from the last checkpoint of the run folder, if there is one.
        overwrite: start anew although the run folder holds an unfinished training.
        on_step: called after each step.
        settings: fields of `tara.training.settings.TrainSettings`.

    Raises:
        TaraError: when something is wrong with the photos, words, settings, base or output.
        TrainingInterrupted: on Ctrl-C once training has begun, after a checkpoint has been written.
    """
    loaded = base if not isinstance(base, str | Path) else None
    if isinstance(captions, str):
        settings["captions"], captions = captions, None
    concept = concept_settings(
        images=images,
        rare_word=rare_word,
        class_word=class_word,
        name=name,
        prompt=prompt,
        caption_templates=captions,
        masks=masks,
        out=out,
        is_style=is_style,
    )
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
    on_step: OnStep | None = None,
    on_class_image: OnClassImage | None = None,
    on_upload: OnUpload | None = None,
) -> list[Adapter]:
    """Train all concepts of a recipe side by side, write run folder and adapters; the entry point of every way in.

    In a program that a launcher has started in several processes, each takes its share of every step, and the main
    process writes.

    Args:
        recipe: settings and concepts.
        base: a base or loaded pipeline instead of the one that the settings name.
        resume: go on from the run folder's last checkpoint, if there is one.
        overwrite: start anew although the run folder holds an unfinished training.
        on_step: called after each step.
        on_class_image: called after each class image that is generated for prior preservation.
        on_upload: called with the adapters' address on the hub; a TaraWarning says what to do when they are not there.

    Returns:
        the adapters, in the order of the concepts.

    Raises:
        TaraError: when something is wrong with the photos, words, settings, base or output.
        TrainingInterrupted: on Ctrl-C once training has begun, after a checkpoint has been written.
        OtherProcessEnded: when the run cannot go on, because one of its other processes has ended.
    """
    folder, processes = RunFolder(recipe.run_folder), join(_device(recipe, base))
    # what can be known without the base is checked before it is loaded, which may take minutes
    check_optimizer(recipe.settings.optimizer)
    check_previews(recipe)
    check_outputs(recipe)
    _check_earlier_run(folder, resume=resume, overwrite=overwrite)
    if processes.is_main:
        refuse_claimed(folder.path)
    last = folder.last_checkpoint() if resume else None
    state = None if last is None else load_checkpoint(last)
    with _threads(recipe.settings.threads):
        inputs = check_inputs(recipe.concepts, recipe.settings, lambda: _base(recipe, base))
        training = _prepared(recipe, inputs, folder, state, processes, on_class_image)
        run = _Run(training=training, inputs=inputs, folder=folder, on_step=on_step or (lambda _: None))
        # nothing is refused from here on, in no process, so what an earlier run left may be deleted
        processes.barrier()
        repository = with_owner(recipe.repository) if recipe.settings.push_to_hub and processes.is_main else None
        if processes.is_main:
            run.in_main_process(repository)
        else:
            run.in_other_process()
        processes.barrier()  # the files are there for all
    if repository is not None:
        _upload(folder.hub, repository, on_upload)
    return training.adapters()


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A training and what belongs to its steps: metrics, tracker, checkpoints, previews, and Ctrl-C."""

    training: Training
    inputs: TrainingInputs
    folder: RunFolder
    on_step: OnStep

    @property
    def recipe(self) -> Recipe:
        """The recipe with the base's defaults."""
        return Recipe(settings=self.inputs.settings, concepts=self.inputs.concepts)

    def in_main_process(self, repository: str | None) -> None:
        """All steps, and then the adapters, the page and, for a repository, the hub folder; Ctrl-C stops cleanly."""
        training, folder, settings = self.training, self.folder, self.inputs.settings
        # several processes stop between steps only, where they wait for one another
        alone = training.processes.count == 1
        with claimed(folder.path), asked_to_stop(lambda: training.is_whole and alone) as stop:
            folder.begin(self.recipe, training.base.device, after=training.step)
            tracker = Tracker(settings.report_to, folder.path, settings.project)
            metrics = Metrics(folder.metrics)
            try:
                self._steps(metrics, tracker, stop)
                self._finish(repository, stop)
            except NaNError as failure:
                metrics.flush()
                self._describe()
                raise TaraError(f"{failure} {self._advice()}") from failure
            except KeyboardInterrupt:
                metrics.flush()
                if training.is_whole and folder.steps_done() < training.step:
                    folder.save(training.state())
                self._describe()
                raise TrainingInterrupted(folder.path, folder.steps_done(), training.processes.count) from None
            finally:
                tracker.finish()

    def in_other_process(self) -> None:
        """All steps; the main process handles Ctrl-C, and ends the others."""
        with asked_to_stop(lambda: False):
            for record in self.training.steps():
                self.on_step(record)

    def _steps(self, metrics: Metrics, tracker: Tracker, stop: StopRequest) -> None:
        training, folder, settings, begun = self.training, self.folder, self.inputs.settings, perf_counter()
        if _due(settings.preview_every, training.step) and lacks_previews(training, folder):
            write_previews(training, folder, stop)  # the run was killed between a checkpoint and its previews
        for record in training.steps():
            metrics.add(_row(record, perf_counter() - begun))
            tracker.log(record.index, _numbers(record))
            last = record.index == record.steps
            if last or _due(settings.checkpoint_every, record.index):
                metrics.flush()
                early = zip(distinct_names(training.concepts), training.adapters(), strict=True)
                folder.save(training.state(), {} if last else dict(early))
            if _due(settings.preview_every, record.index):
                write_previews(training, folder, stop)
            self.on_step(record)
            if not last:
                stop.carry_out()

    def _finish(self, repository: str | None, stop: StopRequest) -> None:
        training, folder = self.training, self.folder
        adapters, first = training.adapters(), distinct_names(training.concepts)[0]
        for concept, adapter in zip(training.concepts, adapters, strict=True):
            adapter.save(concept.file)
        if repository is not None and training.step not in folder.previews_of(first):
            write_previews(training, folder, stop)
        self._describe()
        if repository is not None:
            write_hub_folder(folder, training.concepts, training.settings, adapters, repository)

    def _describe(self) -> None:
        self.folder.plot_losses()
        write_run_page(self.folder, self.recipe, self.inputs.examples)

    def _advice(self) -> str:
        """Where a run can go on that has come to numbers that are NaN."""
        if not (done := self.folder.steps_done()):
            return f"There is no checkpoint in '{self.folder.path}' to go on from."
        return f"The last good checkpoint is step {done}; go on from it with `{resume_command(self.folder.path)}`."


def _prepared(
    recipe: Recipe,
    inputs: TrainingInputs,
    folder: RunFolder,
    state: TrainingState | None,
    processes: Processes,
    on_class_image: OnClassImage | None,
) -> Training:
    """The training before its first step, or at the step of a checkpoint, with all class images generated."""
    settings = inputs.settings
    if state is not None and state.step > settings.steps:
        raise TaraError(
            f"'{folder.path}' is at step {state.step}, but steps is {settings.steps}. Give {state.step} or more."
        )
    folders = class_folders(recipe)
    for concept in inputs.concepts if folders and processes.is_main else ():
        phrase = class_phrase(concept, settings)
        generate_missing(phrase, folders[concept.class_word], settings.num_class_images, inputs.base, on_class_image)
    processes.barrier()  # the class images are there for all
    training = Training(inputs, folders, processes)
    if state is not None:
        training.load(state)
    return training


def _upload(folder: Path, repository: str, on_upload: OnUpload | None) -> None:
    try:
        address = upload(folder, repository)
    except TaraError as failure:  # the training is worth more than its place on the hub
        warn(str(failure))
    else:
        if on_upload is not None:
            on_upload(address)


def _device(recipe: Recipe, base: Base | Any | None) -> str:
    """Where a run computes: where a loaded base is, or as the settings say."""
    if base is None:
        return recipe.settings.device or best_device()
    return torch.device(getattr(base, "device", "cpu")).type


def _base(recipe: Recipe, base: Base | Any | None) -> Base:
    if base is not None:
        return base if isinstance(base, Base) else Base(base)
    settings = recipe.settings
    on_cpu = settings.device == "cpu" or (settings.device is None and not torch.cuda.is_available())
    if settings.precision == "fp16" and on_cpu:
        raise TaraError("precision fp16 needs a GPU. Use bf16 or fp32 on a CPU.")
    return load_base(
        settings.base,
        device=settings.device,
        precision=settings.precision,
        revision=settings.revision,
        variant=settings.variant,
        vae=settings.vae,
        prediction_type=settings.prediction_type,
    )


def _check_earlier_run(folder: RunFolder, *, resume: bool, overwrite: bool) -> None:
    """Refuse (TaraError) to overwrite an unfinished training."""
    done = folder.steps_done()
    if not done or resume or overwrite:
        return
    anew = "start anew with --overwrite (overwrite=True in Python), or give another out"
    try:
        wanted = read_recipe(folder.path).settings.steps
    except TaraError as failure:
        raise TaraError(
            f"'{folder.path}' holds a training ({done} steps) whose {RUN_SETTINGS} cannot be read. "
            f"{anew[0].upper()}{anew[1:]}."
        ) from failure
    if done < wanted:
        raise TaraError(
            f"'{folder.path}' holds an unfinished training ({done} steps). Go on with "
            f"`{resume_command(folder.path)}`, {anew}."
        )


def _row(record: StepRecord, seconds: float) -> dict[str, Any]:
    concepts = {part.name: {k: v for k, v in asdict(part).items() if k != "name"} for part in record.concepts}
    return {
        "step": record.index,
        "learning_rate": record.learning_rate,
        "seconds": round(seconds, 3),
        "concepts": concepts,
    }


def _numbers(record: StepRecord) -> dict[str, float]:
    losses = {f"{part.name}/loss": part.loss for part in record.concepts}
    return {**losses, "loss": record.loss, "learning_rate": record.learning_rate}


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


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
