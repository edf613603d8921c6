"""The exit code of a command, and the one-sentence message of a failure."""

import os
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext

from tara.cli.terminal import one_line, say
from tara.errors import TaraError, TaraWarning
from tara.training.distributed import Ending, OtherProcessEnded, joined, main_process_only

FAILED, INTERRUPTED = 2, 130


def run_command(command: Callable[[], object], again: str = "", *, distributed: bool = False) -> int:
    """Run a command; the exit code is 0, 2 after a failure, 130 after Ctrl-C.

    Args:
        command: what to run.
        again: what a user types to run it once more, shown after a Ctrl-C that has no better advice.
        distributed: whether processes that were launched together share the work; the main one alone prints.
    """
    # libraries that load models log and draw bars of their own; ours say what a person needs
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    with warnings.catch_warnings(), main_process_only() if distributed else nullcontext():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", TaraWarning)
        warnings.showwarning = _print_once()
        ending = _ending(command, again)
        if distributed:
            try:
                ending = ending and joined().end(ending)
            finally:
                joined().leave()
        if ending is None:
            return 0
        say(one_line(ending.sentence), to=sys.stderr)
        return ending.code


def _ending(command: Callable[[], object], again: str) -> Ending | None:
    """Run a command; its failure, if any."""
    try:
        command()
        sys.stdout.flush()  # what a reader such as `head` no longer takes is noticed here, not at exit
    except KeyboardInterrupt as stopped:
        advice = f" Start again with: {again}" if again else ""
        return Ending(sentence=str(stopped) or f"Stopped.{advice}", code=INTERRUPTED)
    except TaraError as failure:
        return Ending(sentence=f"Error: {failure}", code=FAILED)
    except OtherProcessEnded as other:
        return other.ending
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as failure:
        return Ending(sentence=f"Error: {_disk_sentence(failure)}", code=FAILED)
    except RuntimeError as failure:
        if type(failure).__name__ != "OutOfMemoryError":  # torch's own class, and torch may not be imported
            raise
        full = "Error: The device's memory is full. Choose a smaller batch size or resolution."
        return Ending(sentence=full, code=FAILED)
    return None


def _disk_sentence(failure: OSError) -> str:
    name = f"'{failure.filename}': " if failure.filename else ""
    return f"{name}{failure.strerror or failure}. Check the path, your rights and the free space."


def _print_once() -> Callable[..., None]:
    """Prints each warning in one line, once: a command may prepare the same prompt several times."""
    printed: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        line = one_line(str(message))
        if line not in printed:
            printed.add(line)
            say(f"Note: {line}", to=sys.stderr)

    return show
