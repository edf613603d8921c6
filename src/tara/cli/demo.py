"""`tara demo`: trains two subjects and generates them together, on the embedded base."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tara.cli.options import Overwrite
from tara.cli.terminal import only_our_bars, progress, say
from tara.errors import tara_version
from tara.report.page import PAGE
from tara.storage.outputs import SHEET, output_folder

RESULTS = "results.json"


def demo(*, out: Annotated[Path, Parameter(help="Output folder")] = Path("demo"), overwrite: Overwrite = False) -> None:
    """Train two bundled subjects and generate images of both, beside those of summed plain LoRAs."""
    from tara.demo import run  # here, because it imports torch

    only_our_bars()
    with output_folder(out, {"demo": tara_version()}, SHEET, PAGE, RESULTS, overwrite=overwrite) as finished:
        if finished:
            results = json.loads((out / RESULTS).read_text(encoding="utf-8"))
        else:
            with progress("Demo", 100) as advance:
                results = run(out, lambda activity, fraction: advance(100 * fraction, activity))
    for name, column in results["columns"].items():
        say(f"{name:>10}: success {column['success']:4.0%}, identity {column['identity']:.2f}")
    say(f"{results['seconds']['total']:.0f} s, {results['peak_memory_mib']} MiB at most.")
    already = "The demo exists already. " if finished else ""
    say(f"{already}Look at {out / PAGE}, or at {out / SHEET}.")
