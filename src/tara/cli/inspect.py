"""`tara inspect`: what an adapter file says about itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tara.cli.terminal import say, visible

if TYPE_CHECKING:
    from tara.adapters.adapter import Adapter


def inspect(
    file: Annotated[Path, Parameter(help="Adapter file of any tool, or folder")],
    /,
    *,
    base: Annotated[
        str | None, Parameter(help="Base: also print the norm of each delta relative to the weight that it changes")
    ] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=(), help="Print one JSON object")] = False,
) -> None:
    """Show what an adapter file says about itself: its words, its base family and how it was trained."""
    from tara.adapters.adapter import load_adapter
    from tara.inference.active_adapter import advise_on_scale

    adapter = load_adapter(file)
    advise_on_scale(adapter)
    facts = _facts(adapter) | ({} if base is None else _beside(base, adapter))
    if as_json:
        say(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        _show(file, facts)


def _facts(adapter: Adapter) -> dict[str, Any]:
    card = adapter.card
    deltas = [*adapter.layers.values(), *adapter.text_layers.values()]
    return {
        "format": card.format_version,
        "source": card.source,
        "rare_word": card.rare_word,
        "class_word": card.class_word,
        "family": card.family,
        "base": card.base,
        "rank": card.rank,
        "ranks": sorted({delta.rank for delta in deltas}),
        "scale": card.scale,
        "scales": sorted({delta.scale for delta in deltas}),
        "targets": card.targets,
        "layers": len(adapter.layers),
        "largest_delta": max((delta.norm() for delta in deltas), default=0.0),
        "global_part": f"yes, {len(adapter.global_part)} layers" if adapter.global_part else "no",
        "text_encoder_layers": len(adapter.text_layers),
        "context": card.context,
        "is_style": card.is_style,
        "prompt": card.phrase,
        "examples": list(card.examples),
        "tara_version": card.tara_version,
        "settings": card.settings,
    }


def _beside(base: str, adapter: Adapter) -> dict[str, Any]:
    """How large the deltas are beside a base's own weights."""
    from tara.cli.progress import only_our_bars
    from tara.families.loading import load_base
    from tara.inference.active_adapter import ActiveAdapter
    from tara.inference.fusing import check_fits
    from tara.inference.strength import check_strength, strengths

    only_our_bars()
    loaded, active = load_base(base, device="cpu"), ActiveAdapter(adapter)
    check_fits(loaded, active)
    check_strength(loaded, active)
    found = strengths(loaded, adapter.layers)
    return {"delta_beside_the_base": f"{min(found.values()):.3g} to {max(found.values()):.3g}" if found else ""}


def _show(file: Path, facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    settings = facts.pop("settings")
    facts |= {"rank": _range(facts.pop("ranks")), "scale": _range(facts.pop("scales"))}
    facts["largest_delta"] = f"{facts['largest_delta']:.3g}"
    facts["examples"] = "\n".join(facts["examples"])
    table = Table(title=Text(visible(str(file)), style="bold"), title_justify="left", show_header=False, box=None)
    table.add_column(style="dim")
    table.add_column()
    for name, value in facts.items():
        if value != "":
            table.add_row(name.replace("_", " "), Text(visible(str(value))))
    chosen = {name: value for name, value in settings.items() if value is not None}
    if chosen:
        table.add_row("settings", Text(visible("\n".join(f"{name} = {value}" for name, value in chosen.items()))))
    Console(highlight=False).print(table)


def _range(numbers: Sequence[float]) -> str:
    if not numbers:
        return ""
    first, last = numbers[0], numbers[-1]
    return f"{first:g}" if first == last else f"{first:g} to {last:g}"
