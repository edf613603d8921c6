"""Writes layers and a card in each tool's format: its key names, its tensors, its header."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from tara.adapters.card import CARD_KEY, AdapterCard, commonest_and_rest
from tara.adapters.formats.names import RELEASED_LAYERS_PER_BLOCK, flatten, layers_per_block, to_sgm
from tara.adapters.formats.peft_config import CONFIG_FILE, METADATA_KEY, WEIGHTS_FILE
from tara.adapters.formats.styles import UNET
from tara.core.lora import LowRank
from tara.errors import TaraError
from tara.families.registry import family_named
from tara.families.text import TEXT_ENCODERS
from tara.storage.files import atomic_write

Target = Literal["kohya", "diffusers", "peft", "tara"]

Layers = Mapping[str, LowRank]
"""By path, each of scale 1; those of a text encoder begin with its name, ``text_encoder.text_model...``."""


def write_diffusers(path: Path, layers: Layers, card: AdapterCard, header: Mapping[str, str]) -> None:
    """Write ``unet.{path}.lora_A.weight`` and PEFT's configs in the header, as diffusers and tara do."""
    tensors: dict[str, Tensor] = {}
    configs: dict[str, Any] = {}
    for layer, low_rank in sorted(layers.items()):
        model, inner = split_model(layer)
        tensors |= _peft_tensors(f"{model}.{inner}", low_rank)
    for model in (UNET, *TEXT_ENCODERS):
        config = _config({layer: delta for layer, delta in layers.items() if split_model(layer)[0] == model})
        configs |= {f"{model}.{name}": value for name, value in config.items()}
    _write(path, tensors, {**header, METADATA_KEY: json.dumps(configs, sort_keys=True)}, card)


def write_peft(folder: Path, layers: Layers, card: AdapterCard, header: Mapping[str, str]) -> None:
    """Write the folder that PEFT's ``PeftModel.from_pretrained(unet, folder)`` reads."""
    text = [layer for layer in layers if split_model(layer)[0] != UNET]
    if text:
        raise TaraError(
            f"A PEFT folder is for one model, but this adapter also changes '{text[0]}'. Convert it to diffusers or "
            "kohya."
        )
    tensors: dict[str, Tensor] = {}
    for layer, low_rank in sorted(layers.items()):
        tensors |= _peft_tensors(f"base_model.model.{layer}", low_rank)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": card.base or None,
        "bias": "none",
        "inference_mode": True,
        "lora_dropout": 0.0,
        **_config(layers),
    }
    _write(folder / WEIGHTS_FILE, tensors, header, card)
    atomic_write(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True).encode())


def write_kohya(path: Path, layers: Layers, card: AdapterCard, header: Mapping[str, str]) -> None:
    """Write ``lora_unet_...`` keys with alpha = rank. Names are flattened diffusers paths, or sgm names for SDXL."""
    tensors: dict[str, Tensor] = {}
    family = family_named(card.family)
    sdxl = (family is not None and family.files.sgm_blocks) or any(
        layer.startswith(f"{TEXT_ENCODERS[1]}.") for layer in layers
    )
    per_block = _layers_per_block(layers, card) if sdxl else 0
    for layer, low_rank in sorted(layers.items()):
        model, inner = split_model(layer)
        if model == UNET:
            name = f"lora_unet_{to_sgm(inner, per_block) if sdxl else flatten(inner)}"
        else:
            number = ("1" if model == TEXT_ENCODERS[0] else "2") if sdxl else ""
            name = f"lora_te{number}_{flatten(inner)}"
        down, up = _matrices(low_rank)
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = down, up
        tensors[f"{name}.alpha"] = torch.tensor(float(low_rank.rank))
    _write(path, tensors, header, card)


def _layers_per_block(layers: Layers, card: AdapterCard) -> int:
    """The number of resnets per down block, on which kohya's block numbers depend.

    It is that of the released bases, or for other bases is determined from the layers.

    Raises:
        TaraError: for an adapter of another base with too few layers to determine it.
    """
    family = family_named(card.family)
    if family is None or family.name == card.family:
        return RELEASED_LAYERS_PER_BLOCK
    if (number := layers_per_block(layer for layer in layers if split_model(layer)[0] == UNET)) is None:
        raise TaraError(
            f"kohya's layer names contain block numbers of the base, which do not follow from the {len(layers)} layers "
            f"of this '{card.family}' adapter. Convert it to diffusers."
        )
    return number


def split_model(layer: str) -> tuple[str, str]:
    """Split ``text_encoder.text_model...`` into the model and the path inside it. All other paths are the U-Net's."""
    model, _, inner = layer.partition(".")
    return (model, inner) if model in TEXT_ENCODERS else (UNET, layer)


def _peft_tensors(name: str, low_rank: LowRank) -> dict[str, Tensor]:
    down, up = _matrices(low_rank)
    return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}


def _matrices(low_rank: LowRank) -> tuple[Tensor, Tensor]:
    a, b = low_rank.a.detach().cpu(), low_rank.b.detach().cpu()
    if low_rank.kernel is not None:
        a, b = a.unflatten(1, (-1, *low_rank.kernel)), b[:, :, None, None]
    return a.contiguous(), b.contiguous()


def _config(layers: Layers) -> dict[str, Any]:
    """PEFT's config of one model's layers. Has LoraConfig's fields only, because diffusers passes all to it."""
    if not layers:
        return {}
    # by the end of the path, which PEFT compares: some releases of transformers have no module `text_model`
    ranks = {split_model(layer)[1].removeprefix("text_model."): delta.rank for layer, delta in layers.items()}
    commonest, pattern = commonest_and_rest(ranks)
    patterns = {"rank_pattern": pattern, "alpha_pattern": pattern} if pattern else {}
    return {"r": commonest, "lora_alpha": commonest, "target_modules": sorted(ranks), **patterns}


def _write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str], card: AdapterCard) -> None:
    header = {"format": "pt", **header, CARD_KEY: card.model_dump_json()}
    atomic_write(path, _in_order(safetensors.torch.save(dict(tensors), metadata=dict(header))))


def _in_order(file: bytes) -> bytes:
    """The same safetensors file with a sorted header, because the library writes metadata in random order."""
    size = int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors start at a multiple of 8 bytes
    return len(header).to_bytes(8, "little") + header + file[8 + size :]
