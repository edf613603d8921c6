"""Ctrl-C in a training run: when it takes effect, and what is saved."""

import shlex
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C in a training run; ``step`` is that of the last checkpoint (0: none), ``command`` goes on from there."""

    def __init__(self, folder: Path, step: int, processes: int = 1) -> None:
        self.folder, self.step, self.command = folder, step, resume_command(folder)
        kept = f"step {step} is kept in {folder}" if step else "before the first step"
        again = f" (launched in {processes} processes, as before)" if processes > 1 else ""
        super().__init__(f"Stopped: {kept}. Resume with: {self.command}{again}")


def resume_command(folder: Path) -> str:
    """The command that goes on with a run."""
    return f"tara train {shlex.quote(str(folder))} --resume"


@dataclass
class StopRequest:
    """Whether a stop was asked for, and whether it has begun."""

    asked: bool = False
    begun: bool = False

    def carry_out(self) -> None:
        """Stop (KeyboardInterrupt) if that was asked for."""
        if self.asked:
            self.begun = True
            raise KeyboardInterrupt


@contextmanager
def asked_to_stop(may_stop: Callable[[], bool]) -> Generator[StopRequest]:
    """The first Ctrl-C only asks, a second one stops at once where ``may_stop``; none stops a stop."""
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
