"""The published scripts' command lines, unchanged, over tara's own settings."""

import shlex
import sys
from collections.abc import Sequence

from tara.cli.exit_codes import outcome
from tara.cli.published import flags
from tara.cli.published.inference import draw
from tara.cli.published.script import Script, read_flags
from tara.cli.published.training import train
from tara.cli.terminal import any_text, say

SD_TRAINING = Script(
    file="train_dreambooth_tara_sd.py",
    about="Train one adapter on Stable Diffusion 1.x or 2.x, as the published script of this name is called.",
    flags=flags.SD_TRAINING,
    work=train,
)
SDXL_TRAINING = Script(
    file="train_dreambooth_tara_sdxl.py",
    about="Train one adapter on SDXL, as the published script of this name is called.",
    flags=flags.SDXL_TRAINING,
    work=train,
)
INFERENCE = Script(
    file="inference_tara.py",
    about="Draw pictures with one adapter or several, as the published script of this name is called.",
    flags=flags.INFERENCE,
    work=draw,
)
SCRIPTS = (SD_TRAINING, SDXL_TRAINING, INFERENCE)


def run(script: Script, arguments: Sequence[str] | None = None) -> int:
    """Run a script; the exit code is 0, 2 after a failure that one sentence tells, 130 after Ctrl-C."""
    if arguments is None:
        any_text()
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    if {"--help", "-h"} & set(tokens):
        say(script.help().rstrip("\n"))
        return 0
    again = shlex.join(["python", script.file, *tokens])
    return outcome(lambda: script.work(read_flags(script, tokens)), again, shared=script.work is train)


def train_sdxl() -> int:
    """The installed command ``train_dreambooth_tara_sdxl.py``."""
    return run(SDXL_TRAINING)
