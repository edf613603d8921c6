"""`tara demo`: two subjects from photos to one picture, on the embedded base."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tara.cli.progress import only_our_bars, progress
from tara.cli.terminal import say
from tara.storage.lock import claimed


def demo(*, out: Annotated[Path, Parameter(help="Folder to write to")] = Path("demo")) -> None:
    """Train two bundled subjects and put them into one picture, beside what plain LoRA addition makes of it."""
    from tara.demo import run  # imported here: it brings torch

    only_our_bars()
    with claimed(out), progress("Demo", 100) as advance:
        results = run(out, lambda what, part: advance(100 * part, what.lower()))
    for name, figures in results["columns"].items():
        say(f"{name:>10}: success {figures['success']:4.0%}, identity {figures['identity']:.2f}")
    say(f"{results['seconds']['total']:.0f} s, {results['peak_memory_mib']} MiB at most.")
    say(f"Look at {out / 'index.html'}, or at {out / 'sheet.png'}.")
