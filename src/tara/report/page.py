"""Grids, plots and tables as one self-contained HTML page."""

import base64
import io
from collections.abc import Sequence
from functools import partial

import jinja2
from PIL import Image

from tara.report.grid import Grid, Table, shrunk

PAGE = "index.html"  # file name of every page
LARGEST_CELL = 416  # twice the 208 pixels at which a page shows an image of a grid, for dense screens


def page(
    *,
    title: str,
    lead: str = "",
    grids: Sequence[Grid] = (),
    plots: Sequence[Image.Image] = (),
    tables: Sequence[Table] = (),
    command: str = "",
) -> str:
    """Build a page: images, plots, tables and finally the command that made them.

    Every text is escaped, and the page forbids scripts and addresses; images are embedded as PNG.
    """
    loader = jinja2.PackageLoader("tara.report")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["embedded"] = embedded
    return environment.get_template("page.html").render(
        title=title,
        lead=lead,
        grids=grids,
        plots=plots,
        tables=tables,
        command=command,
        shrunk=partial(shrunk, longest=LARGEST_CELL),
    )


def embedded(image: Image.Image) -> str:
    """The image as a ``data:`` address of a PNG, for an ``img`` element."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
