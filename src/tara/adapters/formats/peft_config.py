"""Rank and alpha of each layer from PEFT's config, a file beside the weights or an entry in a diffusers header."""

import json
import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import regex  # like `re`, with a limit of time

from tara.adapters.formats.names import ROOTS
from tara.adapters.formats.styles import UNET
from tara.errors import TaraError

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
METADATA_KEY = "lora_adapter_metadata"  # diffusers' name of the header entry that holds the configs of all its models

Number = TypeVar("Number")

_READ = ("LORA", "LOHA", "LOKR", "IA3")
# initialisations that change the base's weights, without which the low-rank pair is useless
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

MOST_EXPRESSIONS, SECONDS_OF_ONE, SECONDS_OF_ALL = 64, 0.2, 3.0
# the length of a compiled expression is the product of its repetition counts
_BOUNDED = re.compile(r"(?=.{0,200}$)[^{]*(\{\d{0,2}(,\d{0,2})?\}[^{]*){0,2}", re.DOTALL)


@dataclass(frozen=True)
class PeftConfig:
    """Rank and alpha of a model's layers. ``ranks`` and ``alphas`` have, by path, those that differ."""

    rank: int | None = None
    alpha: float | None = None
    ranks: Mapping[str, int] = field(default_factory=dict[str, int])
    alphas: Mapping[str, float] = field(default_factory=dict[str, float])
    use_rslora: bool = False
    is_dora: bool = False
    paths: tuple[str, ...] = ()
    """The layers that the config names by their full paths."""

    def alpha_of(self, layer: str, rank: int) -> float | None:
        """The layer's alpha, such that its scale is alpha / rank. None if the config has none."""
        alpha = self.alphas.get(layer, self.alpha)
        # rank-stabilised: the scale is alpha / sqrt(rank)
        return alpha * math.sqrt(rank) if alpha is not None and self.use_rslora else alpha

    def rank_of(self, layer: str) -> int | None:
        """The layer's rank. None if the config has none."""
        return self.ranks.get(layer, self.rank)


def config_beside(file: Path) -> Path | None:
    """The config file that belongs to a PEFT weights file. None if there is none."""
    path = file.parent / CONFIG_FILE
    return path if file.name == WEIGHTS_FILE and path.is_file() else None


def peft_configs(file: Path, header: Mapping[str, str], layers: Mapping[str, list[str]]) -> dict[str, PeftConfig]:
    """The config of each model in ``layers``. A model without a config gets an empty `PeftConfig`.

    Raises:
        TaraError: when a config is damaged, or of a method that is not read.
    """
    configs = dict.fromkeys(layers, PeftConfig())
    if (beside := config_beside(file)) is not None:
        entries = _object(beside, beside.read_text(encoding="utf-8", errors="replace"))
        configs = {model: _parsed(beside, entries, paths) for model, paths in layers.items()}
    if METADATA_KEY in header:
        entries = _object(file, header[METADATA_KEY])
        if not any(key.partition(".")[0] in layers for key in entries):
            entries = {f"{UNET}.{key}": value for key, value in entries.items()}  # a U-Net's own file
        for model, paths in layers.items():
            start = f"{model}."
            if own := {key.removeprefix(start): value for key, value in entries.items() if key.startswith(start)}:
                configs[model] = _parsed(file, own, paths)
    return configs


def _object(path: Path, text: str) -> dict[str, Any]:
    try:
        entries: Any = json.loads(text)
    except (ValueError, RecursionError):  # ValueError: also a number of thousands of digits
        entries = None
    if not isinstance(entries, dict):
        raise TaraError(f"'{path}' has a LoRA config that is not a JSON object. Download the file again.")
    return cast(dict[str, Any], entries)


def _parsed(path: Path, entries: Mapping[str, Any], layers: Iterable[str]) -> PeftConfig:
    method = str(entries.get("peft_type") or "LORA")
    if method not in _READ:
        raise TaraError(
            f"'{path}' is a {method} adapter of PEFT, which tara does not read. It reads {', '.join(_READ)}."
        )
    begun = entries.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGES_THE_BASE):
        raise TaraError(
            f"'{path}' was initialised with init_lora_weights='{begun}', which also changed the base. Convert it to a "
            "plain LoRA with PEFT's path_initial_model_for_weight_conversion."
        )
    targets = entries.get("target_modules")
    listed = [str(name) for name in cast(list[Any], targets)] if isinstance(targets, list) else []
    alpha = entries.get("alpha" if method in ("LOHA", "LOKR") else "lora_alpha")
    try:
        ranks, alphas = (first_fitting(entries.get(f"{kind}_pattern") or {}, layers) for kind in ("rank", "alpha"))
        return PeftConfig(
            rank=None if entries.get("r") is None else int(entries["r"]),
            alpha=None if alpha is None else float(alpha),
            ranks={path: int(number) for path, number in ranks.items()},
            alphas={path: float(number) for path, number in alphas.items()},
            use_rslora=bool(entries.get("use_rslora")),
            is_dora=bool(entries.get("use_dora")),
            paths=tuple(name for name in listed if name.startswith(ROOTS) and "." in name),
        )
    except (TypeError, ValueError, AttributeError, OverflowError, TimeoutError, RecursionError, regex.error) as failure:
        raise TaraError(f"'{path}' has a damaged LoRA config ({failure}). Download the file again.") from failure


def first_fitting(pattern: Mapping[str, Number], layers: Iterable[str]) -> dict[str, Number]:
    """The numbers of the layers that PEFT's ``rank_pattern`` or ``alpha_pattern`` matches.

    A key is the end of a path, or a regular expression for it. The first key that matches a layer counts, as in PEFT
    (`peft.utils.other.get_pattern_key`).

    Raises:
        ValueError: when there are too many expressions, or one is so complex that it could fill the memory.
        regex.error: when a key is not a valid expression.
        TimeoutError: when one expression takes more than 0.2 seconds for a layer, or all take more than 3 seconds.
    """
    places = {key: place for place, key in enumerate(pattern)}
    expressions = [key for key in pattern if not re.fullmatch(r"\w+(\.\w+)*", key)]
    if len(expressions) > MOST_EXPRESSIONS or not all(map(_BOUNDED.fullmatch, expressions)):
        raise ValueError("its patterns are too many or too complex")
    compiled = {key: regex.compile(rf"(.*\.)?({key})$") for key in expressions}
    numbers: dict[str, Number] = {}
    latest = time.thread_time() + SECONDS_OF_ALL
    for layer in layers:
        ends = (layer.split(".", dots)[-1] for dots in range(layer.count(".") + 1))
        fitting = [end for end in ends if end in places]
        fitting += [key for key, pattern in compiled.items() if pattern.match(layer, timeout=SECONDS_OF_ONE)]
        if fitting:
            numbers[layer] = pattern[min(fitting, key=places.__getitem__)]
        if time.thread_time() > latest:
            raise TimeoutError("its patterns take too long")
    return numbers
