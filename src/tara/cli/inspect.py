"""`tara inspect`: shows the card and the layers of an adapter file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

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
    """Show what an adapter file tells: its family, its words, who wrote it, and what can be done with it."""
    from tara.adapters.adapter import load_adapter
    from tara.adapters.card import CARD_KEY
    from tara.adapters.formats.origin import other_family
    from tara.adapters.formats.reading import read_names
    from tara.inference.active_adapter import advise_on_scale

    keys, header = read_names(file)
    if CARD_KEY not in header and (family := other_family(keys, header)):
        facts = {"family": family, **_origin(header, ""), "use": f"none with tara: it is for {family}"}
    else:
        adapter = load_adapter(file)
        advise_on_scale(adapter)
        facts = _facts(adapter) | ({} if base is None else _beside(base, adapter))
    if as_json:
        say(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        _show(file, facts)


def _origin(header: Mapping[str, str], style: str) -> dict[str, Any]:
    from tara.adapters.formats.origin import program, training, trigger_words

    return {
        "program": program(header, style),
        "trigger_words": trigger_words(header),
        "training": training(header),
    }


def _use(adapter: Adapter) -> str:
    """What can be done with an adapter."""
    card = adapter.card
    if card.method:
        return f"it holds {card.method}: --composer sum, or regions with a cut to a low rank"
    word = "" if card.rare_word else ":rare_word=xlo,class_word=dog"
    return f"-a {adapter.name}{word} with any composer" + ("" if adapter.text_kv else "; tara masks nothing of it")


def _facts(adapter: Adapter) -> dict[str, Any]:
    card = adapter.card
    deltas = [*adapter.layers.values(), *adapter.text_layers.values()]
    return {
        "format": card.format_version,
        "source": card.source,
        "method": card.method or "LoRA",
        **(_origin(adapter.header, card.source) if card.source != "tara" else {}),
        "rare_word": card.rare_word,
        "class_word": card.class_word,
        "family": card.family,
        "base": card.base,
        "rank": card.rank,
        "ranks": sorted({delta.rank for delta in deltas}),
        "scale": card.scale,
        "scales": sorted({delta.scale for delta in deltas}),
        "targets": card.targets,
        "modules": dict(Counter(_module(path) for path in adapter.all_layers.keys() | adapter.changes.keys())),
        "precision": sorted({str(delta.b.dtype).removeprefix("torch.") for delta in deltas}),
        "embeddings": list(adapter.embeddings),
        "use": _use(adapter),
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


def _module(path: str) -> str:
    """The kind of a layer: where it is and what it is called, such as ``attn2.to_k``."""
    parts = [part for part in path.split(".") if not part.isdigit()]
    return parts[0] if parts[0].startswith("text_encoder") else ".".join(parts[-2:])


def _beside(base: str, adapter: Adapter) -> dict[str, Any]:
    """The norms of the deltas relative to those of a base's weights."""
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

    settings = facts.pop("settings", {})
    if "ranks" in facts:
        facts |= {"rank": _range(facts.pop("ranks")), "scale": _range(facts.pop("scales"))}
        facts["largest_delta"] = f"{facts['largest_delta']:.3g}"
    table = Table(title=Text(visible(str(file)), style="bold"), title_justify="left", show_header=False, box=None)
    table.add_column(style="dim")
    table.add_column()
    for name, value in facts.items():
        if value not in ("", [], {}):
            table.add_row(name.replace("_", " "), Text(visible(_text(value))))
    chosen = {name: value for name, value in settings.items() if value is not None}
    if chosen:
        table.add_row("settings", Text(visible("\n".join(f"{name} = {value}" for name, value in chosen.items()))))
    Console(highlight=False).print(table)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{entry}: {text}" for entry, text in cast(dict[str, Any], value).items())
    return "\n".join(map(str, cast(list[Any], value))) if isinstance(value, list) else str(value)


def _range(numbers: Sequence[float]) -> str:
    if not numbers:
        return ""
    first, last = numbers[0], numbers[-1]
    return f"{first:g}" if first == last else f"{first:g} to {last:g}"
