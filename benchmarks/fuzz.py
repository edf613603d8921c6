"""Does every reader of other people's files end with a result or one sentence, whatever the bytes?

    python benchmarks/fuzz.py                     110,000 inputs; writes benchmarks/results/fuzz_cpu.json
    python benchmarks/fuzz.py --reader adapter    one reader alone, without a result file

Each input is a valid file with one to four mutations (`hostile.py`): bits, lengths, words, pieces of other files.
The stress cases (`stress_cases.py`) follow: files beyond random mutations, such as bombs, a million keys, ranks of
10^5, each in a process of its own. An input fails when its reader

- raises anything but a TaraError, or one whose message, as the command line prints it, is not one line;
- takes more than 5 seconds of CPU time, or a minute of wall-clock time (its process is ended);
- takes more memory than twice the file and 200 MiB.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hostile
import torch
from hostile import Reader
from result_files import check, command_line, run_info, show_checks, write
from stress_cases import StressCase, stress_cases

from tara.cli.terminal import one_line
from tara.errors import TaraError

INPUTS, SECONDS, WALL_SECONDS, MEMORY = 110_000, 5, 60, 200 * 2**20
SHOWN = 5
"""Failures of a reader that are in the result file in full."""
TOO_LARGE = "MiB for a file of"
STRESS = "stress cases"


@dataclass
class Tally:
    """The outcomes of a reader's inputs."""

    reader: str
    inputs: int = 0
    loaded: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    most_memory: int = 0

    def row(self) -> dict[str, Any]:
        return {
            "reader": self.reader,
            "inputs": self.inputs,
            "loaded": self.loaded,
            "refused": self.refused,
            "failures": len(self.failures),
            "first_failures": self.failures[:SHOWN],
            "slowest_cpu_seconds": round(self.slowest, 3),
            "most_memory_mib": round(self.most_memory / 2**20, 1),
        }


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def attempt(read: Callable[[Path], object], path: Path, tally: Tally, size: int) -> None:
    """Read one input, and count its outcome."""
    before, begun = peak_memory(), time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # without a handler they end this process
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    try:
        read(path)
        tally.loaded += 1
    except TaraError as refusal:
        tally.refused += 1
        if not str(refusal).strip() or len(one_line(str(refusal)).splitlines()) != 1:
            tally.failures.append(f"no sentence: {str(refusal)[:200]!r}")
    except Exception as failure:
        where = traceback.extract_tb(failure.__traceback__)[-1]
        tally.failures.append(
            f"{type(failure).__name__}: {str(failure)[:200]} ({Path(where.filename).name}, {where.name})"
        )
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    tally.inputs += 1
    tally.slowest = max(tally.slowest, time.process_time() - begun)
    # the peak only ever rises, so what an input adds to it is the least that the input took
    taken = peak_memory() - before
    tally.most_memory = max(tally.most_memory, taken)
    if taken > 2 * size + MEMORY:
        tally.failures.append(f"{taken >> 20} {TOO_LARGE} {size >> 10} KiB")


def mutants(reader: Reader, seed: int, numbers: range) -> Iterator[bytes]:
    """The reader's inputs by number; each is a function of its number."""
    for number in numbers:
        chance = random.Random(f"{reader.name} {seed} {number}")
        yield hostile.mutated(chance.choice(reader.samples), chance, reader.samples)


def fuzz(reader: Reader, count: int, seed: int) -> Tally:
    """Give a reader ``count`` inputs; an input that ends its process is a failure, and the next ones follow."""
    tally, done = Tally(reader.name), 0
    while done < count:
        part, ended = _in_process(lambda report, done=done: _block(reader, range(done, count), seed, report))
        done += part.inputs
        if ended:
            done += 1
            part.inputs += 1
            part.failures.append(f"input {done - 1} ended its process: {ended}")
        _add(tally, part)
    return tally


def _block(reader: Reader, numbers: range, seed: int, report: Callable[[Tally], object]) -> None:
    tally = Tally(reader.name)
    with tempfile.TemporaryDirectory() as place:
        for name, content in (reader.beside or {}).items():
            (Path(place) / name).write_bytes(content)
        path = Path(place) / reader.file
        path.parent.mkdir(exist_ok=True)
        for content in mutants(reader, seed, numbers):
            path.unlink(missing_ok=True)
            path.write_bytes(content)
            report(tally)
            attempt(reader.read, path, tally, len(content))
    report(tally)


def _in_process(work: Callable[[Callable[[Tally], object]], object]) -> tuple[Tally, str]:
    """Work in a process of its own; its last reported tally, and how it was ended, if it was."""
    context = multiprocessing.get_context("fork")  # everything is imported already
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_quietly, args=(work, sender.send))
    process.start()
    sender.close()
    last = Tally("")
    try:
        while True:
            last = receiver.recv()
    except EOFError:
        process.join()
    return last, "" if process.exitcode == 0 else _end(process.exitcode)


def _end(code: int | None) -> str:
    return f"over {SECONDS} s" if code in (-signal.SIGPROF, -signal.SIGALRM) else f"exit code {code}"


def _quietly(work: Callable[[Callable[[Tally], object]], object], report: Callable[[Tally], object]) -> None:
    warnings.simplefilter("ignore")  # as the command line does
    work(report)


def _add(tally: Tally, part: Tally) -> None:
    tally.inputs += part.inputs
    tally.loaded += part.loaded
    tally.refused += part.refused
    tally.failures += part.failures
    tally.slowest = max(tally.slowest, part.slowest)
    tally.most_memory = max(tally.most_memory, part.most_memory)


def stress() -> Tally:
    """The stress cases, each in a process and a folder of its own."""
    tally = Tally(STRESS)
    for case in stress_cases():
        with tempfile.TemporaryDirectory() as place:
            # written by another process than the reading one, whose memory is measured
            _in_process(lambda _, case=case, place=place: case.write(Path(place)))
            path = Path(place) / case.file

            def read(report: Callable[[Tally], object], case: StressCase = case, path: Path = path) -> None:
                part = Tally(case.name)
                report(part)
                attempt(case.read, path, part, path.stat().st_size)
                part.failures = [f"{case.name}: {failure}" for failure in part.failures]
                report(part)

            part, ended = _in_process(read)
        if ended:
            part.inputs, part.failures = 1, [f"{case.name}: {ended}"]
        print(f"{case.name}: {part.row()}", file=sys.stderr, flush=True)
        _add(tally, part)
    return tally


def run(readers: Sequence[Reader], inputs: int, seed: int) -> list[Tally]:
    """All readers, then the stress cases."""
    tallies: list[Tally] = []
    for reader in readers:
        tallies.append(fuzz(reader, inputs // len(readers), seed))
        print(tallies[-1].row(), file=sys.stderr, flush=True)
    return [*tallies, stress()]


def result_of(tallies: Sequence[Tally]) -> dict[str, Any]:
    """The result file."""
    inputs, failures = sum(one.inputs for one in tallies), sum(len(one.failures) for one in tallies)
    large = sum(TOO_LARGE in failure for one in tallies for failure in one.failures)
    slowest = max(one.slowest for one in tallies)
    return {
        "rows": [one.row() for one in tallies],
        **run_info(),
        "checks": [
            check("inputs", inputs, ">= 100000", inputs >= 100_000),
            check("inputs that ended with neither a result nor a sentence", failures, "== 0", failures == 0),
            check("inputs over the bound on memory", large, "== 0", large == 0),
            check("slowest input, CPU seconds", round(slowest, 2), f"<= {SECONDS}", slowest <= SECONDS),
        ],
    }


def main() -> None:
    """The command line."""
    readers = hostile.readers()
    parser = command_line(__doc__, "fuzz_cpu.json")
    parser.add_argument("--reader", choices=[*(reader.name for reader in readers), STRESS], help="only this one")
    parser.add_argument("--inputs", type=int, default=INPUTS, help="mutated files in all")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.reader == STRESS:
        stress()
    elif args.reader:
        reader = next(one for one in readers if one.name == args.reader)
        print(json.dumps(fuzz(reader, args.inputs, args.seed).row(), indent=1))
    else:
        result = result_of(run(readers, args.inputs, args.seed))
        write(args.out, result)
        show_checks(result["checks"])


if __name__ == "__main__":
    main()
