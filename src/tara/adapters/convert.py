"""Writes an adapter in the format of another tool."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tara.adapters.adapter import Adapter
from tara.adapters.card import AdapterCard
from tara.adapters.formats.modelspec import header_entries, with_source
from tara.adapters.formats.writing import Layers, Target, write_diffusers, write_kohya, write_peft
from tara.errors import TaraError
from tara.storage.files import is_there
from tara.storage.outputs import is_finished, same_content

Writer = Callable[[Path, Layers, AdapterCard, Mapping[str, str]], None]

WRITERS: dict[Target, Writer] = {
    "kohya": write_kohya,
    "diffusers": write_diffusers,
    "peft": write_peft,
    "tara": write_diffusers,  # what diffusers reads is what we write; the card, which tells the word, makes it ours
}


def convert(adapter: Adapter, to: Target, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write an adapter in the format of another tool, with each scale multiplied into B, and with its card.

    Args:
        adapter: from `tara.adapters.adapter.load_adapter`. Its file may be in any format.
        to: kohya (A1111, ComfyUI), diffusers, peft or tara.
        out: a ``.safetensors`` file; for peft a folder.
        overwrite: whether to replace an existing file or folder of that name.

    Raises:
        TaraError: when the format cannot store a part of the adapter, a tara file would have no rare word, ``out``
            exists already, or it cannot be written.
    """
    out = Path(out)
    if to == "peft" and (out.suffix == ".safetensors" or out.is_file()):
        raise TaraError(f"A PEFT adapter is a folder, and '{out}' is a file. Give a folder.")
    if to != "peft" and out.suffix != ".safetensors":
        raise TaraError(f"'{out}' does not end in .safetensors. Choose a name that does.")
    if to == "tara" and not (adapter.card.rare_word and adapter.card.class_word):
        raise TaraError(
            f"{adapter.name} does not store its words, but a tara file needs them. Add them: --rare-word xlo "
            "--class-word dog."
        )

    if adapter.card.method:
        raise TaraError(
            f"{adapter.name} contains {adapter.card.method}, but only plain LoRAs can be converted. Use the file as it "
            "is."
        )
    if adapter.embeddings:
        raise TaraError(
            f"{adapter.name} contains an embedding of '{next(iter(adapter.embeddings))}', which other formats "
            "cannot store. Use the file as it is."
        )
    written = adapter.unit_scale

    def write(path: Path) -> None:
        header = with_source(header_entries(written.card, out.stem), adapter.header)
        WRITERS[to](path, written.all_layers, written.card, header)

    if is_there(out) and not overwrite:
        with tempfile.TemporaryDirectory() as folder:
            write(copy := Path(folder) / f"copy{out.suffix}")
            if is_finished(out, {}, {} if same_content(copy, out) else None):
                return out
    write(out)
    return out
