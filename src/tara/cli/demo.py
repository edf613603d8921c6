"""`tara demo`: two subjects from photos to one picture, on the embedded base."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def demo(*, out: Annotated[Path, Parameter(help="Folder to write to")] = Path("demo")) -> None:
    """Train two bundled subjects and put them into one picture, beside what plain LoRA addition makes of it."""
    from tara.demo import run  # imported here: it brings torch

    run(out)
    print(f"Look at {out / 'index.html'} (or {out / 'sheet.png'}).")
