"""The adapter file: low-rank weights that say themselves what they are."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tara.errors import TaraError, nearest
from tara.files import atomic_write
from tara.lora import LowRank

FORMAT_VERSION = 1
CARD_KEY = "tara"
PEFT_KEY = "lora_adapter_metadata"  # diffusers' name of the header entry that holds PEFT's LoraConfig
PREFIX = "unet."
CROSS_KV = ("attn2.to_k", "attn2.to_v")

Context = Literal["prompt", "bank", "delta"]
"""Where the embedding of a rare word is taken from when an adapter is composed.

- ``prompt``: from the prompt itself, as published.
- ``bank``: from the adapter's training phrase, key and value row as a whole.
- ``delta``: the frozen part from the prompt, the input of the low-rank delta from the training phrase. The word keeps
  its place among its neighbours and brings what was learned; ``benchmarks/context_toyland.py`` compares the three.
"""


def tara_version() -> str:
    """The installed version of this package."""
    try:
        return version("tara")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0"


class AdapterCard(BaseModel, frozen=True):
    """What an adapter file tells about itself; nobody has to remember the rare word."""

    format_version: int = Field(default=FORMAT_VERSION, ge=1)
    rare_word: str = Field(min_length=1, description="The word that stands for the concept")
    class_word: str = Field(min_length=1, description="What the concept is; may have several words")
    family: str = Field(description="Family of bases that the adapter fits, see tara.families.Family")
    base: str = Field(default="", description="The base that it was trained on, as the user named it")
    rank: int = Field(ge=1)
    alpha: float = Field(description="scale = alpha / rank, as PEFT counts")
    targets: str = Field(default="cross_kv", description="Which layers were trained: cross_kv or attention")
    phrase: str = Field(description="The fixed training phrase; its rare word's rows are the bank")
    context: Context = Field(default="delta", description="The context that composition uses unless told otherwise")
    is_style: bool = False
    settings: dict[str, Any] = Field(default_factory=dict, description="Training settings")
    examples: tuple[str, ...] = ()
    tara_version: str = Field(default_factory=tara_version)

    @property
    def scale(self) -> float:
        """The factor of every delta, alpha / rank."""
        return self.alpha / self.rank


@dataclass(frozen=True, eq=False)
class Adapter:
    """A card and its low-rank deltas, keyed by the path of the projection inside the U-Net.

    For instance ``down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k``. ``name`` is what messages call it.
    """

    card: AdapterCard
    layers: Mapping[str, LowRank]
    name: str = "adapter"

    @cached_property
    def cross_kv(self) -> dict[str, LowRank]:
        """The part on the text's keys and values: masked by token, computed once per prompt."""
        return {path: low_rank for path, low_rank in self.layers.items() if path.endswith(CROSS_KV)}

    @cached_property
    def global_part(self) -> dict[str, LowRank]:
        """The rest: it acts on everything, whether the rare word is in the prompt or not."""
        return {path: low_rank for path, low_rank in self.layers.items() if path not in self.cross_kv}

    def save(self, path: str | Path) -> Path:
        """Write the adapter as one ``.safetensors`` file, whole or not at all; diffusers and PEFT read it too.

        Raises:
            TaraError: when the folder is not writable or the disk is full.
        """
        tensors: dict[str, Tensor] = {}
        for layer, low_rank in sorted(self.layers.items()):
            tensors[f"{PREFIX}{layer}.lora_A.weight"] = low_rank.a.detach().cpu().contiguous()
            tensors[f"{PREFIX}{layer}.lora_B.weight"] = low_rank.b.detach().cpu().contiguous()
        path = Path(path)
        atomic_write(path, _in_order(safetensors.torch.save(tensors, metadata=self._header())))
        return path

    def _header(self) -> dict[str, str]:
        # only LoraConfig's own fields: diffusers passes all of them to its constructor
        peft = {
            f"{PREFIX}r": self.card.rank,
            f"{PREFIX}lora_alpha": self.card.alpha,
            f"{PREFIX}target_modules": sorted(self.layers),
        }
        return {"format": "pt", PEFT_KEY: json.dumps(peft, sort_keys=True), CARD_KEY: self.card.model_dump_json()}


def load_adapter(path: str | Path, alpha: float | None = None) -> Adapter:
    """Read an adapter file onto the CPU.

    Args:
        path: the ``.safetensors`` file.
        alpha: overrides the card's alpha (scale = alpha / rank).

    Raises:
        TaraError: when the file is missing, empty, of another format, of a newer version, or incomplete.
    """
    path = Path(path)
    header, tensors = _read(path)
    if CARD_KEY not in header:
        raise TaraError(
            f"'{path}' has no adapter card: it is another tool's LoRA. Train it with tara, or load it with diffusers."
        )
    card = _card(path, header[CARD_KEY])
    if alpha is not None:
        card = card.model_copy(update={"alpha": alpha})
    return Adapter(card, _layers(path, tensors, card), name=path.name)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        known = [file.name for file in path.parent.glob("*.safetensors")] if path.parent.is_dir() else []
        raise TaraError(f"There is no adapter file '{path}'.{nearest(path.name, known)} Check its path.")
    if path.stat().st_size == 0:
        raise TaraError(f"'{path}' is empty (0 bytes). Train the adapter again, or copy the file again.")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            return dict(file.metadata() or {}), tensors
    except (SafetensorError, OSError) as failure:
        raise TaraError(
            f"'{path}' is not a whole safetensors file ({failure}). Give an adapter that tara wrote."
        ) from failure


def _in_order(file: bytes) -> bytes:
    """The same safetensors file with its header sorted: the library writes metadata in a random order."""
    size = int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors start at a multiple of 8 bytes
    return len(header).to_bytes(8, "little") + header + file[8 + size :]


def _card(path: Path, text: str) -> AdapterCard:
    try:
        card = AdapterCard.model_validate_json(text)
    except ValidationError as failure:
        fault = failure.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise TaraError(
            f"'{path}' has a damaged adapter card ({where}: {fault['msg']}). Train the adapter again."
        ) from failure
    if card.format_version > FORMAT_VERSION:
        raise TaraError(
            f"'{path}' has format version {card.format_version}, this tara reads up to {FORMAT_VERSION}. Update tara."
        )
    return card


def _layers(path: Path, tensors: Mapping[str, Tensor], card: AdapterCard) -> dict[str, LowRank]:
    left = dict(tensors)
    layers: dict[str, LowRank] = {}
    for key in [key for key in tensors if key.startswith(PREFIX) and key.endswith(".lora_A.weight")]:
        layer = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        a, b = left.pop(key), left.pop(f"{PREFIX}{layer}.lora_B.weight", None)
        if b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != card.rank or b.shape[1] != card.rank:
            raise TaraError(
                f"'{path}' is damaged: layer '{layer}' has no pair of rank {card.rank}. Train the adapter again."
            )
        layers[layer] = LowRank(a, b, card.scale)
    if left or not layers:
        what = f"the key '{next(iter(left))}'" if left else "a file without weights"
        raise TaraError(f"'{path}' holds {what}, which tara does not know. Give an adapter that tara wrote.")
    return layers
