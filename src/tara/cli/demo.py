"""`tara demo`: two subjects from photos to one image, on the embedded base."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tara.cli.progress import only_our_bars, progress
from tara.cli.terminal import say
from tara.storage.lock import claimed


def demo(*, out: Annotated[Path, Parameter(help="Output folder")] = Path("demo")) -> None:
    """Train two bundled subjects and generate images of both, beside those of summed plain LoRAs."""
    from tara.demo import run  # here, because it imports torch

    only_our_bars()
    with claimed(out), progress("Demo", 100) as advance:
        results = run(out, lambda activity, fraction: advance(100 * fraction, activity))
    for name, column in results["columns"].items():
        say(f"{name:>10}: success {column['success']:4.0%}, identity {column['identity']:.2f}")
    say(f"{results['seconds']['total']:.0f} s, {results['peak_memory_mib']} MiB at most.")
    say(f"Look at {out / 'index.html'}, or at {out / 'sheet.png'}.")
