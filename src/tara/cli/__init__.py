"""The command line: parse, call, print. Every failure is a one-sentence message and an exit code."""

import shlex
import sys
from collections.abc import Sequence

import cyclopts

from tara.cli.examples import EXAMPLES, with_examples
from tara.cli.exit_codes import run_command
from tara.cli.other_names import our_flag
from tara.cli.terminal import enable_unicode_streams
from tara.errors import TaraError, tara_version

app = cyclopts.App(
    name="tara",
    help=with_examples(
        "Several personal concepts in one image: train an adapter for each, then name them in one prompt.", ""
    ),
    version=tara_version,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # it has a message of ours
    result_action="return_value",
)
COMMANDS = {
    "train": ("tara.cli.train:train", "Train an adapter for each concept, from a few photos."),
    "generate": ("tara.cli.generate:generate", "Generate images with any number of adapters in one prompt."),
    "evaluate": ("tara.cli.evaluate:evaluate", "Score images subject by subject: presence, identity, leakage."),
    "attention": ("tara.cli.attention:attention", "Show where rare words and class words attend."),
    "compare": ("tara.cli.compare:compare", "Generate one prompt with several composers, side by side."),
    "inspect": ("tara.cli.inspect:inspect", "Show what is in an adapter file."),
    "convert": ("tara.cli.convert:convert", "Write an adapter as a kohya, diffusers, PEFT or tara file."),
    "server": ("tara.cli.server:server", "Serve images of many adapters over HTTP, as OpenAI's API and as jobs."),
    "demo": ("tara.cli.demo:demo", "Train two subjects and generate them together, in minutes on a CPU."),
}
for name, (place, summary) in COMMANDS.items():
    # by name, so that `tara --help` imports none of them
    app.command(place, name=name, help=with_examples(summary, name), sort_key=list(COMMANDS).index(name))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 2 after a failure, 130 after Ctrl-C."""
    if arguments is None:
        enable_unicode_streams()
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    again = shlex.join(["tara", *tokens])
    return run_command(lambda: _call(tokens), again, distributed=tokens[:1] == ["train"])


def _call(tokens: Sequence[str]) -> None:
    for token in tokens:
        if any("\ud800" <= character <= "\udfff" for character in token):  # as Python stands in for bytes of no text
            raise TaraError(f"'{token}' is not UTF-8 text. Rename the file, or write the prompt in UTF-8.")
    try:
        command, bound, left = app.parse_args(tokens, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as failure:
        raise TaraError(_sentence(failure, tokens)) from failure
    # pages end with the command that made them
    typed = {"command_line": shlex.join(["tara", *tokens])} if "command_line" in left else {}
    command(*bound.args, **bound.kwargs, **typed)


def _sentence(failure: cyclopts.CycloptsError, tokens: Sequence[str]) -> str:
    command = tokens[0] if tokens and tokens[0] in COMMANDS else ""
    page = f"tara {command} --help" if command else "tara --help"
    if isinstance(failure, cyclopts.UnknownOptionError):
        option = failure.token.keyword or failure.token.value
        if ours := our_flag(command, option):
            return f"{option} is another tool's flag; here: {ours}. See `{page}`."
    if isinstance(failure, cyclopts.MissingArgumentError) and failure.argument is not None and not failure.keyword:
        return f"{failure.argument.name} is missing. For example: {EXAMPLES[command][0]}"
    if isinstance(failure, cyclopts.UnusedCliTokensError):
        unused = " ".join(failure.unused_tokens or ())
        text = f"Unexpected argument '{unused}'. A prompt or a path with spaces needs quotes."
    else:
        text = " ".join(str(failure).split())
    return f"{text} See `{page}`."
