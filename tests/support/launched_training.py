"""Work in forked processes: as torchrun starts several of them, or alone so that it can be killed."""

import multiprocessing
import os
import re
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TIMEOUT = 300  # seconds
GLOO = re.compile(r"^\[Gloo\] Rank \d+ is connected to .*\n", re.MULTILINE)
"""What torch 2.8 itself prints when processes connect."""
# a fork needs no imports, but CUDA does not survive it
FORKS = multiprocessing.get_context("forkserver" if torch.cuda.is_available() else "fork")


@dataclass(frozen=True)
class Finished:
    """What a process printed and ended with."""

    code: int | None
    out: str
    err: str


def train_folder(path: Path, stop: int | None = None) -> int:
    """Go on with a run folder in float64 and print each step; with ``stop``, Ctrl-C arrives after that step."""
    import tiny_bases
    from tara.cli.exit_codes import run_command
    from tara.training.loop import StepRecord
    from tara.training.run.recipe_files import read_recipe
    from tara.training.run.run import train_recipe
    from training_fixtures import in_float64

    def on_step(record: StepRecord) -> None:
        print(record.index, flush=True)
        if record.index == stop:
            signal.raise_signal(signal.SIGINT)

    def train() -> None:
        train_recipe(read_recipe(path), in_float64(tiny_bases.sd_pipeline()), resume=True, on_step=on_step)

    return run_command(train, distributed=True)


def command(arguments: Sequence[str]) -> int:
    """Run a command of tara."""
    from tara.cli import main

    return main(arguments)


def _child(
    work: Callable[..., int], arguments: Sequence[Any], folder: Path, environment: dict[str, str], printed: Path
) -> None:
    from accelerate import PartialState

    PartialState._reset_state()  # of the process that it was forked from
    os.environ.update(environment)
    os.chdir(folder)
    for stream, ending in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{printed}.{ending}", os.O_WRONLY | os.O_CREAT), stream)
    sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    sys.exit(work(*arguments))


def started(
    work: Callable[..., int], arguments: Sequence[Any], folder: Path, environment: dict[str, str], printed: Path
) -> Any:
    """A process that works in a folder, and prints into files beside ``printed``."""
    process = FORKS.Process(target=_child, args=(work, arguments, folder, environment, printed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of newer Pythons, about threads: none of ours runs now
        process.start()
    return process


def launched(
    work: Callable[..., int], arguments: Sequence[Any], folders: Sequence[Path], printed: Path
) -> list[Finished]:
    """Do the same work in one process per folder, as torchrun does, and wait for all of them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": len(folders)}
    finished: list[Finished] = []
    with ExitStack() as stack:
        processes = []
        for number, folder in enumerate(folders):
            own = {"RANK": number, "LOCAL_RANK": number, "LOCAL_WORLD_SIZE": len(folders)} | place
            environment = {name: str(value) for name, value in own.items()}
            processes.append(started(work, arguments, folder, environment, Path(f"{printed}-{number}")))
            stack.callback(processes[-1].kill)  # one that waits for another for ever
        for number, process in enumerate(processes):
            process.join(TIMEOUT)
            out, err = (Path(f"{printed}-{number}.{ending}").read_text() for ending in ("out", "err"))
            finished.append(Finished(process.exitcode, GLOO.sub("", out), err))
    return finished
