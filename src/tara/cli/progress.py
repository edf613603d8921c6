"""The progress bar: one line with the progress of a command and the remaining time."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

Advance = Callable[[float, str], None]
"""Takes how much is done in all, and a short note such as the loss."""


@contextmanager
def progress(title: str, total: int) -> Generator[Advance]:
    """Show a bar on the error stream (standard output stays for results); a log file gets its last state only.

    It appears with the first advance, so that none stands above the sentence of a command that was refused.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=Console(stderr=True, highlight=False))
    task = bars.add_task(title, total=total, note="")

    def advance(done: float, note: str) -> None:
        bars.start()
        bars.update(task, completed=done, note=note)

    try:
        yield advance
    finally:
        if bars.live.is_started:
            bars.stop()


def only_our_bars() -> None:
    """Switch off the bars that the libraries draw while they read files; downloads keep theirs."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
