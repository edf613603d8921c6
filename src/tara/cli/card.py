"""`tara inspect`: what an adapter file says about itself."""

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter


def inspect(
    file: Annotated[Path, Parameter(help="Adapter file")],
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative=(), help="Print one JSON object")] = False,
) -> None:
    """Show what an adapter file says about itself: its words, its base family and how it was trained."""
    from tara.adapter import load_adapter

    adapter = load_adapter(file)
    card = adapter.card
    facts: dict[str, Any] = {
        "format": card.format_version,
        "rare_word": card.rare_word,
        "class_word": card.class_word,
        "family": card.family,
        "base": card.base,
        "rank": card.rank,
        "scale": card.scale,
        "targets": card.targets,
        "layers": len(adapter.layers),
        "context": card.context,
        "is_style": card.is_style,
        "prompt": card.phrase,
        "examples": list(card.examples),
        "tara_version": card.tara_version,
        "settings": card.settings,
    }
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        _show(file, facts)


def _show(file: Path, facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    settings = facts.pop("settings")
    facts["examples"] = "\n".join(facts["examples"])
    table = Table(title=Text(str(file), style="bold"), title_justify="left", show_header=False, box=None)
    table.add_column(style="dim")
    table.add_column()
    for name, value in facts.items():
        if value != "":
            table.add_row(name.replace("_", " "), Text(str(value)))
    chosen = {name: value for name, value in settings.items() if value is not None}
    table.add_row("settings", Text("\n".join(f"{name} = {value}" for name, value in chosen.items())))
    Console(highlight=False).print(table)
