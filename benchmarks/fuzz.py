"""Does every reader of other people's files end with a result or one sentence, whatever bytes it is given?

    python benchmarks/fuzz.py                     110,000 inputs; writes benchmarks/results/fuzz_cpu.json
    python benchmarks/fuzz.py --reader adapter    one reader alone, written nowhere

Each input is a good file with one to four things done to it (`hostile.py`): bits, lengths, words, pieces of others.
After them come the giants (`giants.py`): files that no chance makes, such as bombs, a million keys, ranks of 10^5,
each in a process of its own. An input fails when its reader

- raises anything but a TaraError, or one whose sentence, as the command line prints it, is not one line;
- takes more than 5 seconds of the processor, or a minute of the clock (its process is ended);
- takes more memory than twice the file and 200 MiB.
"""

from __future__ import annotations

import argparse
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
from giants import Giant, giants
from hostile import Reader
from result_files import check, circumstances

from tara.cli.terminal import one_line
from tara.errors import TaraError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "fuzz_cpu.json"
INPUTS, SECONDS, STANDSTILL, MEMORY = 110_000, 5, 60, 200 * 2**20
SHOWN = 5
"""Failures of a reader that the result file tells in full."""
TOO_LARGE = "MiB for a file of"


@dataclass
class Tally:
    """What became of a reader's inputs."""

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
    """One input, and what became of it."""
    before, begun = peak_memory(), time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # nobody hears them: they end this process
    signal.setitimer(signal.ITIMER_REAL, STANDSTILL)
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
    """The reader's inputs of these numbers; each is a function of its number."""
    for number in numbers:
        chance = random.Random(f"{reader.name} {seed} {number}")
        yield hostile.spoiled(chance.choice(reader.samples), chance, reader.samples)


def fuzz(reader: Reader, count: int, seed: int) -> Tally:
    """Give a reader so many inputs; an input that ends its process is a failure, and the next ones follow."""
    tally, done = Tally(reader.name), 0
    while done < count:
        part, ended = _apart(lambda tell, done=done: _block(reader, range(done, count), seed, tell))
        done += part.inputs
        if ended:
            done += 1
            part.inputs += 1
            part.failures.append(f"input {done - 1} ended its process: {ended}")
        _add(tally, part)
    return tally


def _block(reader: Reader, numbers: range, seed: int, tell: Callable[[Tally], object]) -> None:
    tally = Tally(reader.name)
    with tempfile.TemporaryDirectory() as place:
        for name, content in (reader.beside or {}).items():
            (Path(place) / name).write_bytes(content)
        path = Path(place) / reader.file
        path.parent.mkdir(exist_ok=True)
        for content in mutants(reader, seed, numbers):
            path.unlink(missing_ok=True)
            path.write_bytes(content)
            tell(tally)
            attempt(reader.read, path, tally, len(content))
    tell(tally)


def _apart(work: Callable[[Callable[[Tally], object]], object]) -> tuple[Tally, str]:
    """Work in a process of its own; the last tally that it told, and how it ended if not by itself."""
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
    return last, "" if process.exitcode == 0 else _how(process.exitcode)


def _how(code: int | None) -> str:
    return f"over {SECONDS} s" if code in (-signal.SIGPROF, -signal.SIGALRM) else f"exit code {code}"


def _quietly(work: Callable[[Callable[[Tally], object]], object], tell: Callable[[Tally], object]) -> None:
    warnings.simplefilter("ignore")  # as the command line does
    work(tell)


def _add(tally: Tally, part: Tally) -> None:
    tally.inputs += part.inputs
    tally.loaded += part.loaded
    tally.refused += part.refused
    tally.failures += part.failures
    tally.slowest = max(tally.slowest, part.slowest)
    tally.most_memory = max(tally.most_memory, part.most_memory)


def monsters() -> Tally:
    """The giants, each in a process and a folder of its own."""
    tally = Tally("giants")
    for giant in giants():
        with tempfile.TemporaryDirectory() as place:
            # written by another process than it is read by, whose memory is measured
            _apart(lambda _, giant=giant, place=place: giant.write(Path(place)))
            path = Path(place) / giant.file

            def alone(tell: Callable[[Tally], object], giant: Giant = giant, path: Path = path) -> None:
                part = Tally(giant.name)
                tell(part)
                attempt(giant.read, path, part, path.stat().st_size)
                part.failures = [f"{giant.name}: {failure}" for failure in part.failures]
                tell(part)

            part, ended = _apart(alone)
        if ended:
            part.inputs, part.failures = 1, [f"{giant.name}: {ended}"]
        print(f"{giant.name}: {part.row()}", file=sys.stderr, flush=True)
        _add(tally, part)
    return tally


def run(readers: Sequence[Reader], inputs: int, seed: int) -> list[Tally]:
    """All readers, then the giants."""
    tallies: list[Tally] = []
    for reader in readers:
        tallies.append(fuzz(reader, inputs // len(readers), seed))
        print(tallies[-1].row(), file=sys.stderr, flush=True)
    return [*tallies, monsters()]


def result_of(tallies: Sequence[Tally]) -> dict[str, Any]:
    """The result file."""
    inputs, failures = sum(one.inputs for one in tallies), sum(len(one.failures) for one in tallies)
    large = sum(TOO_LARGE in failure for one in tallies for failure in one.failures)
    slowest = max(one.slowest for one in tallies)
    return {
        "rows": [one.row() for one in tallies],
        **circumstances(),
        "checks": [
            check("inputs", inputs, ">= 100000", inputs >= 100_000),
            check("inputs that ended with neither a result nor a sentence", failures, "== 0", failures == 0),
            check("inputs over the bound on memory", large, "== 0", large == 0),
            check("slowest input, CPU seconds", round(slowest, 2), f"<= {SECONDS}", slowest <= SECONDS),
        ],
    }


def main() -> None:
    """Parse, run, write."""
    readers = hostile.readers()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", choices=[*(reader.name for reader in readers), "giants"], help="only this one")
    parser.add_argument("--inputs", type=int, default=INPUTS, help="mutated files in all")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--out", type=Path, default=RESULTS, help="result file")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.reader == "giants":
        monsters()
    elif chosen.reader:
        reader = next(one for one in readers if one.name == chosen.reader)
        print(json.dumps(fuzz(reader, chosen.inputs, chosen.seed).row(), indent=1))
    else:
        result = result_of(run(readers, chosen.inputs, chosen.seed))
        chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(result["checks"], indent=1))


if __name__ == "__main__":
    main()
