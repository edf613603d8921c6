"""Output to the terminal: a progress bar, and text of files and users, whose control characters are made visible."""

import os
import sys
import unicodedata
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol, TextIO

MOST_CHARACTERS = 2000  # of one printed message: a name in it may be as long as a file


class Advance(Protocol):
    """Moves a bar."""

    def __call__(self, done: float, note: str, total: float | None = None) -> None:
        """Show how much is done in all, a short note such as the loss, and from now on another total."""
        ...


# marks and embeddings of writing from right to left: they reorder what stands behind them on the line
_TURNS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # controls, halves of pairs, breaks that only some know


def say(text: str, to: TextIO | None = None) -> None:
    """Print a result, or, to the error stream, a note or what went wrong."""
    print(visible(text), file=to or sys.stdout)


def visible(text: str) -> str:
    """The text with all that could command a terminal, or turn a line around, as escapes; newlines and tabs stay."""
    return "".join(character if _is_harmless(character) else f"\\u{ord(character):04x}" for character in text)


def one_line(text: str, most: int = MOST_CHARACTERS) -> str:
    """The same in one line of at most so many characters: a longer one is left out in the middle."""
    return _shortened(visible(" ".join(_shortened(text, most).split())), most)


def enable_unicode_streams() -> None:
    """Make the standard streams, and the names of files, take every text.

    A terminal whose locale has no letter for it is shown its escape. Where names of files could not hold it either, as
    with LC_ALL=C, the command is started once more in Python's own UTF-8 mode.
    """
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    if sys.getfilesystemencoding().lower() != "utf-8" and not sys.flags.utf8_mode:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _is_harmless(character: str) -> bool:
    if character in "\n\t":
        return True
    # zero-width joiners stay: emoji and many scripts need them
    return unicodedata.category(character) not in _CONTROLS and character not in _TURNS


def _shortened(text: str, most: int) -> str:
    half = most // 2 - 3
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"


@contextmanager
def progress(title: str, total: int | None = None) -> Generator[Advance]:
    """Show a bar on the error stream (standard output stays for results); a log file gets its last state only.

    It appears with the first advance, so that none stands above the sentence of a command that was refused.
    """
    from rich import progress as rich
    from rich.console import Console

    bars = rich.Progress(
        rich.TextColumn("{task.description}"),
        rich.BarColumn(bar_width=30),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[note]}", markup=False),
        rich.TimeElapsedColumn(),
        rich.TextColumn("<"),  # as tqdm: elapsed < remaining
        rich.TimeRemainingColumn(),
        console=Console(stderr=True, highlight=False),
    )
    task = bars.add_task(title, total=total, note="")

    def advance(done: float, note: str, total: float | None = None) -> None:
        bars.start()
        bars.update(task, completed=done, note=note, total=total)  # a total of None leaves it as it was

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
