"""The scale of each layer according to PEFT's ``LoraConfig``."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from tara.adapters.formats.names import ROOTS
from tara.errors import TaraError

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
METADATA_KEY = "lora_adapter_metadata"  # diffusers' name of the header entry that holds the configs of all its models

Number = TypeVar("Number", int, float)

MOST_EXPRESSIONS, LONGEST_EXPRESSION, MOST_CHOICES = 16, 200, 2
# taken for a regular expression: names, numbers, choices of names, at most one gap; others could search for ever
_EXPRESSION = re.compile(r"\^?(?:[\w.-]|\\[.dw]|\\[dw]\+|\[\w+\]\+?|\((?:\?:)?[\w.|]+\)|\.\*)*\$?")
_GAP, _NUMBERS = re.compile(r"\.\*|\\w\+|\]\+"), re.compile(r"\\d\+")

_READ = ("LORA", "LOHA", "LOKR", "IA3")

# ways to begin training that change the base's own weights: the pair alone then says nothing
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Pattern(Generic[Number]):
    """Numbers of layers by the end of their path, or a regular expression for one; the first that fits, as in PEFT."""

    numbers: Mapping[str, Number] = field(default_factory=dict[str, Number])

    @cached_property
    def _expressions(self) -> dict[str, re.Pattern[str]]:
        # a number of any length at every place would be a search without an end
        return {key: re.compile(_NUMBERS.sub(r"\\d{1,4}", key)) for key in self.numbers if _is_expression(key)}

    @cached_property
    def _places(self) -> dict[str, int]:
        return {key: place for place, key in enumerate(self.numbers)}

    def of(self, layer: str) -> Number | None:
        """A layer's number; None when none fits."""
        if not self.numbers or layer in self.numbers:  # most files have none, and hundreds of layers
            return self.numbers.get(layer)
        parts = layer.split(".")
        ends = [".".join(parts[start:]) for start in range(len(parts))]
        fitting = [end for end in ends if end in self.numbers]
        fitting += [key for key, pattern in self._expressions.items() if any(map(pattern.fullmatch, ends))]
        return self.numbers[min(fitting, key=self._places.__getitem__)] if fitting else None


def _is_expression(key: str) -> bool:
    return re.fullmatch(r"[\w.]*", key) is None


@dataclass(frozen=True)
class PeftConfig:
    """Rank and alpha of a model's layers; where a pattern fits a layer it goes before the number for all."""

    rank: int | None = None
    alpha: float | None = None
    rank_pattern: Pattern[int] = field(default_factory=Pattern[int])
    alpha_pattern: Pattern[float] = field(default_factory=Pattern[float])
    use_rslora: bool = False
    is_dora: bool = False
    paths: tuple[str, ...] = ()
    """The layers that it names in full."""

    def alpha_of(self, layer: str, rank: int) -> float | None:
        """The alpha with which alpha / rank is the layer's scale; None when the config does not tell."""
        own = self.alpha_pattern.of(layer)
        alpha = self.alpha if own is None else own
        if alpha is None:
            return None
        return alpha * math.sqrt(rank) if self.use_rslora else alpha  # rank-stabilised: alpha / sqrt(rank)

    def rank_of(self, layer: str) -> int | None:
        """The layer's rank; None when the config does not tell."""
        own = self.rank_pattern.of(layer)
        return self.rank if own is None else own


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
        TaraError: as `folder_config`.
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
    except (ValueError, RecursionError):  # ValueError: also a number of thousands of digits
        entries = None
    if not isinstance(entries, dict):
        raise TaraError(f"'{path}' has a LoRA config that is not a JSON object. Download the file again.")
    return cast(dict[str, Any], entries)


def _parsed(path: Path, entries: Mapping[str, Any]) -> PeftConfig:
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
        return PeftConfig(
            rank=None if entries.get("r") is None else int(entries["r"]),
            alpha=None if alpha is None else float(alpha),
            rank_pattern=_pattern(entries.get("rank_pattern"), int),
            alpha_pattern=_pattern(entries.get("alpha_pattern"), float),
            use_rslora=bool(entries.get("use_rslora")),
            is_dora=bool(entries.get("use_dora")),
            paths=tuple(name for name in listed if name.startswith(ROOTS) and "." in name),
        )
    except (TypeError, ValueError, AttributeError, OverflowError) as failure:
        raise TaraError(f"'{path}' has a damaged LoRA config ({failure}). Download the file again.") from failure


def _pattern(entries: Mapping[str, Any] | None, kind: Callable[[Any], Number]) -> Pattern[Number]:
    found = {str(key): kind(value) for key, value in (entries or {}).items()}
    expressions = [key for key in found if _is_expression(key)]
    if len(expressions) > MOST_EXPRESSIONS:
        raise ValueError(f"{len(expressions)} patterns are too many")
    for key in expressions:
        _check_expression(key)
    return Pattern(found)


def _check_expression(key: str) -> None:
    """Refuse an expression that could search for ever, with ValueError."""
    simple = len(key) <= LONGEST_EXPRESSION and _EXPRESSION.fullmatch(key) is not None
    if not simple or len(_GAP.findall(key)) > 1 or key.count("(") > MOST_CHOICES:
        raise ValueError(f"the pattern '{key[:LONGEST_EXPRESSION]}' is too complex")
