"""`tara convert`: writes an adapter in another tool's format."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from tara.cli.options import Overwrite
from tara.cli.terminal import say
from tara.errors import warn


def convert(
    file: Annotated[Path, Parameter(help="Adapter file of any tool, or folder")],
    /,
    *,
    to: Annotated[
        Literal["kohya", "diffusers", "peft", "tara"],
        Parameter(help="Format to write; A1111 and ComfyUI read kohya"),
    ],
    out: Annotated[Path, Parameter(help="File to write; for peft a folder")],
    rare_word: Annotated[str | None, Parameter(help="Rare word, if the file does not store it")] = None,
    class_word: Annotated[str | None, Parameter(help="Class word, if the file does not store it")] = None,
    alpha: Annotated[float | None, Parameter(help="Alpha of every layer, if the file does not store it")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write an adapter in another tool's format: the same deltas, with alpha = rank in every layer."""
    from dataclasses import replace

    from tara.adapters.adapter import load_adapter
    from tara.adapters.convert import convert as write

    adapter = load_adapter(file, alpha)
    words = {name: given for name, given in (("rare_word", rare_word), ("class_word", class_word)) if given is not None}
    adapter = replace(adapter, card=adapter.card.model_copy(update=words))
    if to != "tara" and adapter.text_kv_deltas and adapter.card.settings.get("token_mask"):
        warn(
            f"{adapter.name} was trained with the token mask, which other tools do not have. There it acts on every "
            "token and resembles its subject less (identity 0.49 instead of 0.79 on the embedded base). Use it with "
            "tara generate or tara.prepare, or train it again with --no-token-mask --alignment-loss off."
        )
    written = write(adapter, to, out, overwrite=overwrite)
    say(f"Wrote {written}: {len(adapter.all_layers)} layers with the same deltas, {to} format.")
