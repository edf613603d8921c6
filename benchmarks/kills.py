"""What is left when a command is killed at any moment (`kill -9`), and does the next start complete it?

    python benchmarks/kills.py                  writes benchmarks/results/kills_cpu.json
    python benchmarks/kills.py --only train     one command alone, without a result file

Each trial starts `tara train`, `generate` or `evaluate` in an empty folder, on a tiny base with random weights, in a
process that is killed: half of the trials at a random time, half at a random file operation (a file opened, renamed or
removed), where half-written files are likely. Then the same command runs to its end. A trial fails unless

- every file that the killed process left under its own name is whole: images, checkpoints, adapters, settings;
- the second start succeeds, and finished images are not written again;
- adapters, checkpoints and images equal those of a command that was never stopped, byte for byte;
- no half-written file is left in the end.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from result_files import check, command_line, run_info, show_checks, write
from tqdm import tqdm

from tara.adapters.adapter import load_adapter
from tara.cli import main as tara_command
from tara.training.checkpoints import load_checkpoint
from tara.training.run import generated

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
tqdm.monitor_interval = 0  # nor does its thread
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))  # tiny bases and models, made from configs
import tiny_bases  # noqa: E402
import tiny_models  # noqa: E402
from training_fixtures import photo_folder  # noqa: E402

TRIALS = {"train": 100, "generate": 100, "evaluate": 100}
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
EXACT = (".safetensors", ".png")
REWRITTEN = ("loss.png",)
"""Plots, which a second start writes again."""


@dataclass
class Tally:
    """The outcomes of a command's trials."""

    command: str
    trials: int = 0
    killed_at: Counter[str] = field(default_factory=Counter[str])
    failures: list[str] = field(default_factory=list)


class Commands:
    """The commands of the trials, and their base, models and photos."""

    def __init__(self, place: Path) -> None:
        self._place = place
        tiny_bases.sd_pipeline().save_pretrained(place / "base")
        self._models = [build(place / build.__name__) for build in (tiny_models.dinov2, tiny_models.owlv2)]
        for word, seed in (("xlo", 1), ("szn", 2)):
            photo_folder(place / word, 2, seed)
        for command in TRIALS:  # in this process: later ones are forked and have its imports
            out = place / ("trained" if command == "train" else f"first-{command}")
            assert tara_command(self.arguments(command, out)) == 0

    def arguments(self, command: str, out: Path) -> list[str]:
        base = ["--base", self._place / "base", "--device", "cpu"]
        adapters = [part for word in ("dog", "cat") for part in ("-a", self._place / "trained" / f"{word}.safetensors")]
        models = ["--detector", self._place / "owlv2", "--dino", self._place / "dinov2", "--confidence", 0]
        models += ["--clip", "none", "--plain-dino", "none"]
        references = [part for word in ("xlo", "szn") for part in ("-r", f"{word}={self._place / word}")]
        options: dict[str, list[Any]] = {
            "train": [self._recipe(out), "--resume"],
            "generate": [
                "a xlo dog and a szn cat",
                *adapters,
                *base,
                "--steps",
                2,
                "--seeds",
                "0-4",
                "--batch-size",
                2,
            ],
            "evaluate": ["pairs", *adapters, *base, *models, *references, "--steps", 1],
        }
        options["evaluate"] += ["--prompt", "{subjects} on the beach", "--seeds", "0-2"]
        where = [] if command == "train" else ["--out", out]
        return [str(part) for part in (command, *options[command], *where)]

    def _recipe(self, out: Path) -> Path:
        out.mkdir(parents=True, exist_ok=True)
        settings = {"base": str(self._place / "base"), "device": "cpu", "steps": 4, "rank": 2, "learning_rate": 0.01}
        settings |= {"checkpoint_every": 2, "preview_every": 2, "preview_images": 1}
        lines = ["[settings]", *(f"{name} = {json.dumps(value)}" for name, value in settings.items())]
        for word, class_word in (("xlo", "dog"), ("szn", "cat")):
            concept = {"images": str(self._place / word), "rare_word": word, "class_word": class_word}
            concept["out"] = f"{class_word}.safetensors"
            lines += ["[[concept]]", *(f"{name} = {json.dumps(value)}" for name, value in concept.items())]
        path = out / "both.toml"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    def run(self, arguments: list[str], before: Callable[[], object] = lambda: None) -> multiprocessing.Process:
        """Run a command in a process of its own, silently."""
        process = multiprocessing.get_context("fork").Process(target=_command, args=(arguments, before))
        process.start()
        process.join()
        return process


def _command(arguments: list[str], before: Callable[[], object]) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if not os.environ.get("KILLS_SPEAK"):
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    tqdm.set_lock(threading.RLock())  # the default one is shared by all forks: one that dies with it blocks the others
    before()
    sys.exit(tara_command(arguments))


def at_time(seconds: float) -> Callable[[], object]:
    """Be killed after this much CPU time, which other work on the machine does not change."""

    def arm() -> None:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends a process without clean-up, as SIGKILL does
        signal.setitimer(signal.ITIMER_PROF, seconds)

    return arm


def at_operation(number: int, folder: Path, note: Path) -> Callable[[], object]:
    """Be killed at the n-th file operation in the folder; 0 never kills, and notes how many there are."""

    def arm() -> None:
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event not in OPERATIONS or not str(arguments[0]).startswith(str(folder)):
                return
            count += 1
            if count == number:
                os.write(descriptor, f"{event} {Path(str(arguments[0])).name}".encode())
                os.kill(os.getpid(), signal.SIGKILL)
            if not number:
                os.pwrite(descriptor, f"{count:9}".encode(), 0)

        descriptor = os.open(note, os.O_CREAT | os.O_WRONLY)
        sys.addaudithook(hook)

    return arm


def whole(path: Path) -> str:
    """What is wrong with a file that a killed process has left; nothing when it is whole."""
    try:
        if path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            (load_checkpoint if path.stem[5:].isdecimal() else load_adapter)(path)
        return ""
    except Exception as failure:
        return f"{path.name} is torn ({failure})"


def results_in(folder: Path) -> dict[str, bytes]:
    """The files that must not depend on whether a command was stopped."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in EXACT and path.name not in REWRITTEN
    }


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and ".unfinished-" not in path.name]


def trial(
    commands: Commands, command: str, out: Path, arm: Callable[[], object], expected: Mapping[str, bytes]
) -> list[str]:
    """One command killed and started again; the faults of the result."""
    arguments = commands.arguments(command, out)
    commands.run(arguments, arm)
    faults = [fault for path in files_in(out) if (fault := whole(path))]
    finished = {
        path: path.stat().st_mtime_ns for path in files_in(out) if path.suffix == ".png" and path.name not in REWRITTEN
    }
    process = commands.run(arguments)
    if process.exitcode != 0:
        faults.append(f"the second start ended with {process.exitcode}")
    results = results_in(out)
    names = expected.keys() | results.keys()
    faults += [f"{name} differs" for name in names if expected.get(name) != results.get(name)]
    if command != "train":  # a preview after the last checkpoint is generated again with its step
        faults += [
            f"{path.name} was generated again" for path, then in finished.items() if path.stat().st_mtime_ns != then
        ]
    faults += [f"{path.name} is left" for path in out.rglob(".*") if path.is_file()]
    return faults


def kill(commands: Commands, command: str, trials: int, place: Path, seed: int) -> Tally:
    """All trials of a command."""
    tally, chance = Tally(command), random.Random(f"{command} {seed}")
    never, note = place / f"{command}-never", place / "note"
    note.unlink(missing_ok=True)
    begun = os.times()
    commands.run(commands.arguments(command, never), at_operation(0, never, note))
    ended = os.times()
    seconds = ended.children_user + ended.children_system - begun.children_user - begun.children_system
    operations = int(note.read_text())
    print(f"{command}: {seconds:.2f} CPU seconds, {operations} file operations", file=sys.stderr, flush=True)
    expected = results_in(never)
    for number in range(trials):
        note.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as folder:
            out = Path(folder)
            operation, moment = chance.randint(1, operations), seconds * chance.random()
            arm = at_operation(operation, out, note) if number % 2 else at_time(moment)
            faults = trial(commands, command, out, arm, expected)
        at = note.read_text().split(" ")[0] if note.is_file() and note.stat().st_size else "a random time"
        tally.killed_at[at] += 1
        tally.failures += [f"trial {number}: {'; '.join(faults)}"] if faults else []
        tally.trials += 1
        if faults or number % 10 == 9:
            print(command, number, at, faults, file=sys.stderr, flush=True)
    return tally


def result_of(tallies: list[Tally]) -> dict[str, Any]:
    """The result file."""
    rows = [
        {"command": one.command, "trials": one.trials, "killed_at": dict(one.killed_at), "failures": one.failures}
        for one in tallies
    ]
    checks = [
        check(f"{one.command}: failures in {one.trials} kills", len(one.failures), "== 0", not one.failures)
        for one in tallies
    ]
    trained = sum(one.trials for one in tallies if one.command == "train")
    checks.append(check("kills of a training", trained, ">= 100", trained >= 100))
    return {"rows": rows, **run_info(), "checks": checks}


def main() -> None:
    """The command line."""
    parser = command_line(__doc__, "kills_cpu.json")
    parser.add_argument("--only", choices=TRIALS, help="only this command")
    parser.add_argument("--trials", type=int, help="trials of each command")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    args = parser.parse_args()
    torch.set_num_threads(1)
    generated.PREVIEW_STEPS = 1
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        commands = Commands(place)
        wanted = {args.only: TRIALS[args.only]} if args.only else TRIALS
        tallies: list[Tally] = []
        for name, count in wanted.items():
            tallies.append(kill(commands, name, args.trials or count, place, args.seed))
            if not args.only:  # after each command, because all of them take hours
                write(args.out, result_of(tallies))
    show_checks(result_of(tallies)["checks"])


if __name__ == "__main__":
    main()
