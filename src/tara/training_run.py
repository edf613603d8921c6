"""A training run from photos to files: the run folder, checkpoints, previews, trackers and Ctrl-C."""

import shlex
import signal
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any, cast

import torch

from tara.adapter import Adapter
from tara.backbone import Backbone
from tara.bases import load_base
from tara.class_images import class_folders, draw_missing
from tara.concepts import check_concepts, class_phrase
from tara.config import Precision, Recipe, concept_settings, read_recipe, train_settings
from tara.data import Example
from tara.errors import TaraError
from tara.files import atomic_write
from tara.run_folder import Metrics, RunFolder, check_outputs
from tara.sampling import Studio
from tara.tokens import word_spans
from tara.trackers import Tracker
from tara.training import StepRecord, Training

PRECISIONS: Mapping[Precision, torch.dtype] = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PREVIEW_STEPS = 25
OnStep = Callable[[StepRecord], object]
OnClassPicture = Callable[[int, int], object]
"""Told how many class pictures there are, and how many are wanted."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C in a training run.

    ``folder`` is the run folder, ``step`` the last step that a checkpoint holds (0 when there is none), ``command``
    what goes on from there.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step, self.command = folder, step, resume_command(folder)
        kept = f"step {step} is kept in {folder}" if step else "before the first checkpoint"
        super().__init__(f"Stopped: {kept}. Go on with: {self.command}")


def resume_command(folder: Path) -> str:
    """The command that goes on with a run."""
    return f"tara train {shlex.quote(str(folder))} --resume"


def train(
    *,
    images: str | Path,
    word: str,
    kind: str | None = None,
    base: str | Path | Backbone | Any = "toyland",
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
        word: rare word that will stand for it, such as ``xlo``.
        kind: class word, such as ``dog``; may be left out in DreamBooth's folders, whose table knows it.
        base: ``toyland``, ``sd15``, ``sdxl``, a folder, a hub id, or a loaded diffusers pipeline, which stays as it is.
        out: the ``.safetensors`` file to write; ``WORD-KIND.safetensors`` when None.
        name, prompt, masks, is_style: see :class:`tara.config.ConceptSettings`.
        captions: ``fixed``, ``varied``, or a list of templates with ``{word}`` and ``{kind}``.
        resume: go on from the last checkpoint of the run folder, if there is one.
        overwrite: start anew although the run folder holds an unfinished training.
        on_step: told of each step.
        settings: fields of :class:`tara.config.TrainSettings`.

    Raises:
        TaraError: when something is wrong with the photos, words, settings, base or output.
        TrainingInterrupted: on Ctrl-C, after a checkpoint has been written.
    """
    loaded = base if not isinstance(base, str | Path) else None
    if isinstance(captions, str):
        settings["captions"], captions = captions, None
    concept = concept_settings(
        images=images,
        word=word,
        kind=kind,
        name=name,
        prompt=prompt,
        captions=captions,
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
    base: Backbone | Any | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_step: OnStep | None = None,
    on_class_picture: OnClassPicture | None = None,
) -> list[Adapter]:
    """Train all concepts of a recipe and write their adapters; see :func:`run_recipe` for the steps as a generator."""
    run = run_recipe(recipe, base, resume=resume, overwrite=overwrite, on_class_picture=on_class_picture)
    while True:
        try:
            record = next(run)
        except StopIteration as end:
            return cast(list[Adapter], end.value)
        if on_step is not None:
            on_step(record)


def run_recipe(
    recipe: Recipe,
    base: Backbone | Any | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_class_picture: OnClassPicture | None = None,
) -> Generator[StepRecord, None, list[Adapter]]:
    """Train all concepts of a recipe side by side, write run folder and adapters, yield a record of every step.

    Args:
        recipe: settings and concepts.
        base: a backbone or loaded pipeline in place of the one that the settings name.
        resume: go on from the run folder's last checkpoint, if there is one.
        overwrite: start anew although the run folder holds an unfinished training.
        on_class_picture: told of each class picture that is drawn for prior preservation.

    Returns:
        the adapters, in the order of the concepts.

    Raises:
        TaraError: when something is wrong with the photos, words, settings, base or output.
        TrainingInterrupted: on Ctrl-C, after a checkpoint has been written.
    """
    folder, settings = RunFolder(recipe.run_folder), recipe.settings
    # everything that can be wrong is looked at before the base, which may take minutes to load
    examples = check_concepts(recipe.concepts, settings)
    _check_previews(recipe)
    check_outputs(recipe, folder)
    if not resume and not overwrite:
        _refuse_to_forget(folder)
    with ExitStack() as borrowed:
        borrowed.enter_context(_threads(settings.threads))
        backbone = _backbone(recipe, base)
        if not resume or not folder.steps_done():
            folder.start(recipe, backbone.device)
        training = _prepared(recipe, backbone, folder, examples, on_class_picture)
        state = folder.resume() if resume else None
        if state is not None:
            training.load(state)
            folder.describe(recipe, backbone.device)  # what it goes on with, such as more steps
        tracker = Tracker(settings.report_to, folder.path, settings.project)
        borrowed.callback(tracker.finish)
        yield from _steps(training, folder, tracker)
        adapters = training.adapters()
        for concept, adapter in zip(recipe.concepts, adapters, strict=True):
            adapter.save(concept.file)
        folder.draw_loss_curve()
    return adapters


def _steps(training: Training, folder: RunFolder, tracker: Tracker) -> Generator[StepRecord]:
    """All steps with what belongs to each: metrics, checkpoints, previews, and a clean stop on Ctrl-C."""
    settings, metrics, begun = training.settings, Metrics(folder.metrics), perf_counter()
    with _asked_to_stop() as asked:
        try:
            for record in training.steps():
                metrics.add(_row(record, perf_counter() - begun))
                tracker.log(record.index, _numbers(record))
                last = record.index == record.steps
                if last or _due(settings.checkpoint_every, record.index):
                    metrics.flush()
                    _save(training, folder, early=not last)
                if _due(settings.preview_every, record.index) and not asked.is_set():
                    _preview(training, folder)
                yield record
                if asked.is_set() and not last:
                    metrics.flush()
                    folder.save(training.state())
                    folder.draw_loss_curve()
                    raise TrainingInterrupted(folder.path, record.index)
        except TrainingInterrupted:
            raise
        except KeyboardInterrupt:
            # in the middle of a step, whose half must not be kept: the last checkpoint stands
            raise TrainingInterrupted(folder.path, folder.steps_done()) from None


def _save(training: Training, folder: RunFolder, early: bool) -> None:
    if early:
        for adapter in training.adapters():
            adapter.save(folder.early_adapter(training.step, adapter.name))
    folder.save(training.state())


def _preview(training: Training, folder: RunFolder) -> None:
    settings, studio = training.settings, Studio(training.backbone)
    for concept, adapter in zip(training.concepts, training.adapters(), strict=True):
        prompt = concept.fill(settings.preview_prompt or concept.phrase)
        composer = "tara" if settings.tfm else "sum"
        seeds = range(settings.seed, settings.seed + settings.preview_images)
        for made in studio.stream(prompt, [adapter], seeds, steps=PREVIEW_STEPS, composer=composer):
            target = folder.preview(training.step, concept.file.stem, made.index)
            atomic_write(target, lambda path, image=made.image: image.save(path))


def _prepared(
    recipe: Recipe,
    backbone: Backbone,
    folder: RunFolder,
    examples: Sequence[Sequence[Example]],
    on_class_picture: OnClassPicture | None,
) -> Training:
    settings = recipe.settings
    folders = class_folders(recipe.concepts, settings, folder.path)
    for concept in recipe.concepts:
        if concept.kind in folders:
            phrase = class_phrase(concept, settings)
            draw_missing(phrase, folders[concept.kind], settings.class_images, backbone, on_class_picture)
    return Training(recipe.concepts, settings, backbone, folders, examples)


def _backbone(recipe: Recipe, base: Backbone | Any | None) -> Backbone:
    if isinstance(base, Backbone):
        return base
    if base is not None:
        return Backbone.from_pipeline(base)
    settings = recipe.settings
    on_cpu = settings.device == "cpu" or (settings.device is None and not torch.cuda.is_available())
    if settings.mixed_precision == "fp16" and on_cpu:
        raise TaraError("mixed_precision = 'fp16' needs a GPU. Use bf16 or no on a CPU.")
    return load_base(
        settings.base,
        settings.device,
        PRECISIONS[settings.mixed_precision],
        revision=settings.revision,
        variant=settings.variant,
        vae=settings.vae,
    )


def _check_previews(recipe: Recipe) -> None:
    prompt = recipe.settings.preview_prompt
    if not recipe.settings.preview_every or prompt is None:
        return
    for concept in recipe.concepts:
        if not word_spans(concept.fill(prompt), concept.word):
            raise TaraError(
                f"preview_prompt '{prompt}' lacks the rare word '{concept.word}'. Write {{word}} {{kind}} into it."
            )


def _refuse_to_forget(folder: RunFolder) -> None:
    done = folder.steps_done()
    if done and done < read_recipe(folder.path).settings.steps:
        raise TaraError(
            f"'{folder.path}' holds an unfinished training ({done} steps). Go on with `{resume_command(folder.path)}`, "
            "or delete that folder to start anew."
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
    pipe: Any = base.pipe if isinstance(base, Backbone) else base
    return str(getattr(pipe, "name_or_path", "") or type(pipe).__name__)


@contextmanager
def _threads(count: int | None) -> Generator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _asked_to_stop() -> Generator[threading.Event]:
    """The first Ctrl-C asks to stop after the step in hand, a second one stops at once."""
    asked = threading.Event()

    def on_interrupt(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
        yield asked
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
