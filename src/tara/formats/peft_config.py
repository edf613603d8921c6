"""What PEFT's ``LoraConfig`` says about the scale of each layer."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from tara.errors import TaraError
from tara.formats.names import ROOTS

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
METADATA_KEY = "lora_adapter_metadata"  # diffusers' name of the header entry that holds the configs of all its models

Number = TypeVar("Number", int, float)

# ways to begin training that change the base's own weights: the pair alone then says nothing
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class PeftConfig:
    """Rank and alpha of a model's layers; where a pattern fits a layer it goes before the number for all."""

    rank: int | None = None
    alpha: float | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict[str, int])
    alpha_pattern: Mapping[str, float] = field(default_factory=dict[str, float])
    use_rslora: bool = False
    paths: tuple[str, ...] = ()
    """The layers that it names in full."""

    def alpha_of(self, layer: str, rank: int) -> float | None:
        """The alpha with which alpha / rank is the layer's scale; None when the config does not tell."""
        alpha = _chosen(self.alpha_pattern, layer, self.alpha)
        if alpha is None:
            return None
        return alpha * math.sqrt(rank) if self.use_rslora else alpha  # rank-stabilised: alpha / sqrt(rank)

    def rank_of(self, layer: str) -> int | None:
        """The layer's rank; None when the config does not tell."""
        return _chosen(self.rank_pattern, layer, self.rank)


def _chosen(pattern: Mapping[str, Number], layer: str, default: Number | None) -> Number | None:
    if layer in pattern:
        return pattern[layer]
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", layer):  # as PEFT reads it: a suffix, or a regular expression for one
            return value
    return default


def folder_config(file: Path) -> PeftConfig:
    """The config beside a PEFT weights file; an empty one when there is none.

    Raises:
        TaraError: when it is no such config, or one of a method that is no plain LoRA.
    """
    path = config_beside(file)
    if path is None:
        return PeftConfig()
    return _parsed(path, _object(path, path.read_text(encoding="utf-8", errors="replace")))


def config_beside(file: Path) -> Path | None:
    """The config that belongs to a PEFT weights file, where there is one."""
    path = file.parent / CONFIG_FILE
    return path if file.name == WEIGHTS_FILE and path.is_file() else None


def header_configs(file: Path, header: Mapping[str, str], models: Iterable[str]) -> dict[str, PeftConfig]:
    """The configs in a diffusers file's header by model, as far as it has them.

    Raises:
        TaraError: as :func:`folder_config`.
    """
    if METADATA_KEY not in header:
        return {}
    entries = _object(file, header[METADATA_KEY])
    prefixes = tuple(f"{model}." for model in models)
    if not any(key.startswith(prefixes) for key in entries):
        return {"unet": _parsed(file, entries)}  # a U-Net's own file, without the pipeline's names
    found: dict[str, PeftConfig] = {}
    for prefix in prefixes:
        if own := {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}:
            found[prefix[:-1]] = _parsed(file, own)
    return found


def _object(path: Path, text: str) -> dict[str, Any]:
    try:
        entries: Any = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        entries = None
    if not isinstance(entries, dict):
        raise TaraError(f"'{path}' has a LoRA config that is not a JSON object. Get the file again.")
    return cast(dict[str, Any], entries)


def _parsed(path: Path, entries: Mapping[str, Any]) -> PeftConfig:
    method = "DoRA" if entries.get("use_dora") else str(entries.get("peft_type") or "LORA")
    if method != "LORA":
        raise TaraError(f"'{path}' is a {method} adapter, which is no plain LoRA. tara reads low-rank pairs only.")
    begun = entries.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGES_THE_BASE):
        raise TaraError(
            f"'{path}' was begun with init_lora_weights='{begun}', which changed the base, too. Convert it to a plain "
            "LoRA with PEFT's path_initial_model_for_weight_conversion."
        )
    targets = entries.get("target_modules")
    listed = [str(name) for name in cast(list[Any], targets)] if isinstance(targets, list) else []
    try:
        return PeftConfig(
            rank=None if entries.get("r") is None else int(entries["r"]),
            alpha=None if entries.get("lora_alpha") is None else float(entries["lora_alpha"]),
            rank_pattern={_pattern(key): int(value) for key, value in (entries.get("rank_pattern") or {}).items()},
            alpha_pattern={_pattern(key): float(value) for key, value in (entries.get("alpha_pattern") or {}).items()},
            use_rslora=bool(entries.get("use_rslora")),
            paths=tuple(name for name in listed if name.startswith(ROOTS) and "." in name),
        )
    except (TypeError, ValueError, AttributeError, re.error) as failure:
        raise TaraError(f"'{path}' has a damaged LoRA config ({failure}). Get the file again.") from failure


def _pattern(key: str) -> str:
    re.compile(key)
    # a stranger's expression must not be able to search for ever
    if re.search(r"\)[*+{]", key) or len(re.findall(r"[*+{]", key)) > 4:
        raise ValueError(f"the pattern '{key}' is too involved")
    return key
