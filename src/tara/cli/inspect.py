"""`tara inspect`: shows the card and the layers of an adapter file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from cyclopts import Parameter

from tara.cli.terminal import only_our_bars, say, visible

if TYPE_CHECKING:
    from tara.adapters.adapter import Adapter

SHOWN = {"rare_word", "class_word", "family", "base", "rank", "targets", "context", "is_style", "examples"}


def inspect(
    file: Annotated[Path, Parameter(help="Adapter file of any tool, or folder")],
    /,
    *,
    base: Annotated[
        str | None, Parameter(help="Base: also print the norm of each delta relative to the weight that it changes")
    ] = None,
    as_json: Annotated[
        bool, Parameter(name="--json", negative=(), show_default=False, help="Print one JSON object")
    ] = False,
) -> None:
    """Show what an adapter file tells: its family, its words, who wrote it, and what can be done with it."""
    from tara.adapters.adapter import load_adapter
    from tara.adapters.card import CARD_KEY
    from tara.adapters.formats.locating import read_names
    from tara.adapters.formats.origin import other_family
    from tara.inference.active_adapter import warn_of_lost_scale

    keys, header = read_names(file)
    if CARD_KEY not in header and (family := other_family(keys, header)):
        facts = {"family": family, **_origin(header, ""), "use": f"none with tara: it is for {family}"}
    else:
        adapter = load_adapter(file)
        warn_of_lost_scale(adapter)
        facts = _facts(adapter) | ({} if base is None else _relative_norms(base, adapter))
    if as_json:
        say(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        _show(file, facts)


def _origin(header: Mapping[str, str], style: str) -> dict[str, Any]:
    from tara.adapters.formats import origin

    words, training = origin.trigger_words(header), origin.training(header)
    return {"program": origin.program(header, style), "trigger_words": words, "training": training}


def _use(adapter: Adapter) -> str:
    """What can be done with an adapter: how it is given to `tara generate`, and what it then acts on."""
    card, name = adapter.card, f"-a {adapter.name}"
    if card.method:
        return f"{name} --composer sum, or --composer regions, which reduces its rank: it contains {card.method}"
    if card.rare_word:
        words = f"{card.rare_word} {card.class_word}".strip()
        use = f"{name}, with '{words}' in the prompt"
    else:
        use = (
            f"{name}:rare_word=xlo,class_word=dog, with 'xlo dog' in the prompt (for a style: class_word=style); or "
            f"{name} --composer sum, which needs no words"
        )
    if card.is_style:
        return f"{use}; as a style it acts on the whole image"
    if adapter.global_deltas:
        return f"{use}; alone it acts on the whole image, with others in its subject's region (composer regions)"
    if not adapter.text_kv_deltas:
        return f"{use}; it acts on the whole prompt"
    trained = "trained with the token mask" if adapter.trained_with_token_mask else "trained as a plain LoRA"
    return f"{use}; it acts on the rare word's tokens (composer tara) and was {trained}"


def _facts(adapter: Adapter) -> dict[str, Any]:
    card, deltas = adapter.card, adapter.all_layers.values()
    return {
        "format": card.format_version,
        "source": card.source,
        "method": card.method or "LoRA",
        **(_origin(adapter.header, card.source) if card.source != "tara" else {}),
        **card.model_dump(mode="json", include=SHOWN),
        "ranks": sorted({delta.rank for delta in deltas}),
        "alpha": card.alpha,
        "alphas": sorted({card.alpha_of(path) for path in adapter.all_layers}),
        "scale": card.scale,
        "scales": sorted({delta.scale for delta in deltas}),
        "modules": dict(Counter(_module(path) for path in sorted({*adapter.all_layers, *adapter.weight_changes}))),
        "precision": sorted({str(delta.b.dtype).removeprefix("torch.") for delta in deltas}),
        "embeddings": list(adapter.embeddings),
        "layers": len(adapter.layers),
        "text_encoder_layers": len(adapter.text_layers),
        "global_part": f"yes, {len(adapter.global_deltas)} layers" if adapter.global_deltas else "no",
        "largest_delta_norm": max((delta.norm() for delta in deltas), default=0.0),
        "use": _use(adapter),
        "instance_prompt": card.phrase,
        "tara_version": card.tara_version,
        "settings": card.settings,
    }


def _module(path: str) -> str:
    """The kind of a layer: where it is and what it is called, such as ``attn2.to_k``."""
    parts = [part for part in path.split(".") if not part.isdigit()]
    return parts[0] if parts[0].startswith("text_encoder") else ".".join(parts[-2:])


def _relative_norms(base: str, adapter: Adapter) -> dict[str, Any]:
    """The norms of the deltas relative to those of a base's weights."""
    from tara.families.loading import load_base
    from tara.inference.active_adapter import ActiveAdapter
    from tara.inference.fitting import check_fits, check_strength, strengths

    only_our_bars()
    loaded, active = load_base(base, device="cpu"), ActiveAdapter(adapter)
    check_fits(loaded, active)
    check_strength(loaded, active)
    found = strengths(loaded, adapter.layers)
    return {"relative_delta_norm": f"{min(found.values()):.3g} to {max(found.values()):.3g}" if found else ""}


def _show(file: Path, facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    for singular, several in (("rank", "ranks"), ("alpha", "alphas"), ("scale", "scales")):
        if numbers := facts.pop(several, None):
            facts[singular] = " to ".join(dict.fromkeys(f"{number:g}" for number in (numbers[0], numbers[-1])))
    table = Table(title=Text(visible(str(file)), style="bold"), title_justify="left", show_header=False, box=None)
    table.add_column(style="dim")
    table.add_column()
    for name, value in facts.items():
        if text := _text(value):
            table.add_row(name.replace("_", " "), Text(visible(text)))
    Console(highlight=False).print(table)


def _text(value: Any) -> str:
    """Lines of text; entries that are not set are left out."""
    if isinstance(value, dict):
        entries = cast(dict[str, Any], value).items()
        return "\n".join(f"{name}: {entry}" for name, entry in entries if entry is not None)
    if isinstance(value, list):
        return "\n".join(map(str, cast(list[Any], value)))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
