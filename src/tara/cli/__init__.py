"""The command line: parse, call, print. Every failure is one sentence and a number."""

import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version

import cyclopts

from tara.errors import TaraError, TaraWarning

FAILED, INTERRUPTED = 2, 130

app = cyclopts.App(
    name="tara",
    help="Personal subjects in one picture: train a small adapter for each, then name them together.",
    version=lambda: version("tara"),
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # it has a message of ours
    result_action="return_value",
)
COMMANDS = {
    "train": (
        "tara.cli.train:train",
        "Learn one or several subjects or styles from photos: one adapter file for each.",
    ),
    "generate": ("tara.cli.generate:generate", "Draw pictures with any number of adapters in one prompt."),
    "inspect": ("tara.cli.card:inspect", "Show what an adapter file says about itself."),
    "convert": ("tara.cli.convert:convert", "Write an adapter as kohya, diffusers, PEFT or tara file."),
    "demo": ("tara.cli.demo:demo", "Train two bundled subjects and put them into one picture, in minutes on a CPU."),
}
for name, (place, summary) in COMMANDS.items():
    # by name, so that `tara --help` imports none of them
    app.command(place, name=name, help=summary, sort_key=list(COMMANDS).index(name))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 2 after a failure, 130 after Ctrl-C."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    # libraries that load models log and draw bars of their own; ours say what a person needs
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", TaraWarning)
        warnings.showwarning = _one_line
        try:
            app(tokens, exit_on_error=False, print_error=False)
        except KeyboardInterrupt as stopped:
            return _say(str(stopped) or "Stopped.", INTERRUPTED)
        except TaraError as failure:
            return _say(f"Error: {failure}", FAILED)
        except cyclopts.CycloptsError as failure:
            return _say(f"Error: {_sentence(failure, tokens)}", FAILED)
        except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as failure:
            return _say(f"Error: {_disk_sentence(failure)}", FAILED)
        except RuntimeError as failure:
            if type(failure).__name__ != "OutOfMemoryError":  # torch's own class, and torch may not be imported
                raise
            return _say("Error: The device's memory is full. Choose a smaller batch or picture.", FAILED)
    return 0


def _say(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr)
    return code


def _sentence(failure: cyclopts.CycloptsError, tokens: Sequence[str]) -> str:
    page = f"tara {tokens[0]} --help" if tokens and tokens[0] in COMMANDS else "tara --help"
    if isinstance(failure, cyclopts.UnusedCliTokensError):
        text = f"There is no place for '{' '.join(failure.unused_tokens or ())}' in this command."
    else:
        text = " ".join(str(failure).split())
    return f"{text} See `{page}`."


def _disk_sentence(failure: OSError) -> str:
    name = f"'{failure.filename}': " if failure.filename else ""
    return f"{name}{failure.strerror or failure}. Check the path, your rights and the free space."


def _one_line(message: Warning | str, *_: object, **__: object) -> None:
    print(f"Note: {' '.join(str(message).split())}", file=sys.stderr)
