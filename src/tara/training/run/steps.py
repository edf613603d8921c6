"""The steps of a run, with metrics, tracker, checkpoints, previews, and Ctrl-C."""

import shlex
import signal
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from tara.errors import TaraError, warn
from tara.inference.fitting import LARGEST_RATIO, strengths
from tara.storage.lock import folder_lock
from tara.training.loop import NaNError, StepRecord, Training
from tara.training.run.folder import RunFolder
from tara.training.run.generated import lacks_previews, write_previews
from tara.training.run.hub_folder import write_hub_folder
from tara.training.run.metrics import Tracker, append_metrics
from tara.training.run.page import write_run_page
from tara.training.settings import Recipe, distinct_names

STRENGTH_EVERY = 20  # steps between two checks of the deltas' norms
OnStep = Callable[[StepRecord], object]


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C in a training run. ``step`` is that of the last checkpoint (0: none); ``command`` resumes from it."""

    def __init__(self, folder: Path, step: int, processes: int = 1) -> None:
        self.folder, self.step, self.command = folder, step, resume_command(folder)
        kept = f"step {step} is kept in {folder}" if step else "before the first step"
        again = f" (launched in {processes} processes, as before)" if processes > 1 else ""
        super().__init__(f"Stopped: {kept}. Resume with: {self.command}{again}")


def resume_command(folder: Path) -> str:
    """The command that resumes a run."""
    return f"tara train {shlex.quote(str(folder))} --resume"


@dataclass
class StopRequest:
    """Whether a stop was requested, and whether stopping has begun."""

    asked: bool = False
    begun: bool = False

    def carry_out(self) -> None:
        """Raise KeyboardInterrupt if a stop was requested."""
        if self.asked:
            self.begun = True
            raise KeyboardInterrupt


@contextmanager
def asked_to_stop(may_stop: Callable[[], bool]) -> Generator[StopRequest]:
    """Handle Ctrl-C.

    The first one requests a stop, which `StopRequest.carry_out` performs; a second one stops at once if ``may_stop()``.
    Once stopping has begun, further ones are ignored.
    """
    stop = StopRequest()

    def on_interrupt(*_: object) -> None:
        if not stop.begun and may_stop():
            stop.carry_out()
        stop.asked = True

    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield stop
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Runs the steps of a training, with metrics, tracker, checkpoints, previews, and Ctrl-C."""

    training: Training
    folder: RunFolder
    asked: Mapping[str, Any]
    """What `tara.training.run.recipe_files.comparable` says of the recipe as it was given."""
    on_step: OnStep

    def in_main_process(self, repository: str | None) -> None:
        """Train all steps, then write the adapters, the page and, if ``repository`` is given, the hub folder.

        Ctrl-C stops cleanly.
        """
        training, folder, settings = self.training, self.folder, self.training.settings
        # several processes stop only between steps, at a barrier
        alone = training.processes.count == 1
        with folder_lock(folder.path), asked_to_stop(lambda: training.is_whole and alone) as stop:
            folder.begin(self._recipe(), training.base.device, self.asked, training.step)
            tracker = Tracker(settings.report_to, folder.path, settings.project)
            try:
                self._steps(tracker, stop)
                self._finish(repository, stop)
            except NaNError as failure:
                self._write_page()
                raise TaraError(f"{failure} {self._advice()}") from failure
            except KeyboardInterrupt:
                if training.is_whole and folder.steps_done() < training.step:
                    folder.save(training.state(), {})
                self._write_page()
                raise TrainingInterrupted(folder.path, folder.steps_done(), training.processes.count) from None
            finally:
                tracker.finish()

    def in_other_process(self) -> None:
        """Train all steps. Ctrl-C is ignored here: the main process handles it and ends the other processes."""
        with asked_to_stop(lambda: False):
            for record in self.training.steps():
                self.on_step(record)

    def _steps(self, tracker: Tracker, stop: StopRequest) -> None:
        training, folder, settings, begun = self.training, self.folder, self.training.settings, perf_counter()
        if _due(settings.preview_interval, training.step) and lacks_previews(training, folder):
            write_previews(training, folder, stop.carry_out)  # the run was killed between a checkpoint and its previews
        warned = False
        for record in training.steps():
            append_metrics(folder.metrics, _row(record, perf_counter() - begun))
            tracker.log(record.index, _numbers(record))
            last = record.index == record.steps
            if last or _due(settings.checkpoint_every, record.index):
                early = zip(distinct_names(training.concepts), training.adapters(), strict=True)
                folder.save(training.state(), {} if last else dict(early))
            if record.index in settings.kept_steps():
                for concept, adapter in zip(training.concepts, training.adapters(), strict=True):
                    adapter.save(concept.file_at(record.index))
            if _due(settings.preview_interval, record.index):
                write_previews(training, folder, stop.carry_out)
            if not warned and (last or _due(STRENGTH_EVERY, record.index)):
                warned = _warn_of_learning_rate(training, record)
            self.on_step(record)
            if not last:
                stop.carry_out()

    def _finish(self, repository: str | None, stop: StopRequest) -> None:
        training, folder, adapters = self.training, self.folder, self.training.adapters()
        for concept, adapter in zip(training.concepts, adapters, strict=True):
            adapter.save(concept.file)
        if repository is not None and lacks_previews(training, folder):
            write_previews(training, folder, stop.carry_out)
        self._write_page()
        if repository is not None:
            write_hub_folder(folder, training.concepts, training.settings, adapters, repository)

    def _recipe(self) -> Recipe:
        """The recipe with the base's defaults."""
        return Recipe(settings=self.training.settings, concepts=self.training.concepts)

    def _write_page(self) -> None:
        write_run_page(self.folder, self._recipe(), self.training.inputs.photos, self.training.base)

    def _advice(self) -> str:
        """What to do after a NaNError: the last checkpoint and the command that resumes from it, if there is one."""
        if not (done := self.folder.steps_done()):
            return f"There is no checkpoint in '{self.folder.path}' to go on from."
        return f"The last good checkpoint is step {done}; go on from it with `{resume_command(self.folder.path)}`."


def _row(record: StepRecord, seconds: float) -> dict[str, Any]:
    concepts = {part.name: {k: v for k, v in asdict(part).items() if k != "name"} for part in record.concepts}
    step = {"step": record.index, "learning_rate": record.learning_rate, "seconds": round(seconds, 3)}
    return step | {"concepts": concepts}


def _numbers(record: StepRecord) -> dict[str, float]:
    losses = {f"{part.name}/loss": part.loss for part in record.concepts}
    return {**losses, "loss": record.loss, "learning_rate": record.learning_rate}


def _warn_of_learning_rate(training: Training, record: StepRecord) -> bool:
    """Warn (TaraWarning) if an adapter's delta is so large that images are noise. Returns whether it warned."""
    for concept, adapter in zip(training.concepts, training.adapters(), strict=True):
        strongest = max(strengths(training.base, adapter.layers).values(), default=0.0)
        if strongest > LARGEST_RATIO:
            warn(
                f"At step {record.index} the deltas of '{concept.label}' are {strongest:.2g} times the size of the "
                f"weights that they change; above {LARGEST_RATIO} images are noise. The learning rate is too high "
                f"({record.learning_rate:.2g} now): stop, and start anew with a tenth of it and --overwrite."
            )
            return True
    return False


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
