"""Reads LoRA files into pairs of matrices by layer. Unknown content is refused by name, never skipped."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tara.adapters.card import CARD_KEY
from tara.adapters.formats import methods
from tara.adapters.formats.locating import AGAIN, lora_file
from tara.adapters.formats.methods import WeightChange
from tara.adapters.formats.names import ROOTS
from tara.adapters.formats.origin import other_family
from tara.adapters.formats.peft_config import PeftConfig, peft_configs
from tara.adapters.formats.styles import UNET, Part, is_embedding, is_no_weight, other_method, parts
from tara.core.lora import low_rank_from_matrix
from tara.errors import TaraError
from tara.families.text import TEXT_ENCODERS
from tara.storage.safetensors_file import open_safetensors

MOST_RANK = 10_240  # the width of the widest layer of SDXL: a larger rank cannot add information
MOST_ENTRIES = 2**26  # of one layer's weight; the largest of SDXL has 29.5 million

_BUNDLED = "bundle_emb."
_ENCODERS = {"clip_l": TEXT_ENCODERS[0], "clip_g": TEXT_ENCODERS[1]}


@dataclass(frozen=True, eq=False)
class Pair:
    """One layer's matrices: ``a`` (rank, d_in), ``b`` (d_out, rank); ``kernel`` as in `tara.core.lora.LowRank`.

    ``alpha`` is None when the file does not say.
    """

    a: Tensor
    b: Tensor
    kernel: tuple[int, int] | None
    alpha: float | None

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, eq=False)
class LoraFile:
    """The content of a file by path, its header, and the name of the style of its keys.

    Paths in a text encoder begin with its name. ``pairs`` has low-rank and full matrices; paths of biases and norms end
    in ``.bias`` or ``.weight``. ``changes`` has the changes that depend on the base's weights. ``method`` names the
    methods other than plain LoRA; it is empty for a plain LoRA.
    """

    style: str
    header: Mapping[str, str]
    pairs: Mapping[str, Pair]
    changes: Mapping[str, WeightChange]
    embeddings: Mapping[str, Mapping[str, Tensor]]
    """Bundled textual inversions: vectors (n, d) by word and text encoder."""
    method: str


def read_lora(path: Path) -> LoraFile:
    """Read a LoRA of any known style onto the CPU, in the precision that it is stored in.

    Raises:
        TaraError: when the file is missing, damaged or incomplete, or has content that is not supported.
    """
    path = lora_file(path)
    with open_safetensors(path, AGAIN) as file:
        keys, header = list(file.keys()), dict(file.metadata() or {})
        zero = _zero_differences(file, keys)
        keys = [key for key in keys if key not in zero and not is_no_weight(key)]
        if is_embedding(keys):
            raise TaraError(
                f"'{path}' is a textual inversion, not a LoRA. Load it into the pipeline with diffusers' "
                "pipe.load_textual_inversion; its word then works together with adapters."
            )
        if CARD_KEY not in header and (family := other_family(keys, header)):
            raise TaraError(
                f"'{path}' is an adapter for {family}, but tara supports Stable Diffusion 1.x, 2.x and SDXL. Use an "
                "adapter for one of these."
            )
        embeddings = _embeddings(path, file, keys)
        known = _known_parts(path, [key for key in keys if not key.startswith(_BUNDLED)])
        tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in known}
    keys_of = _by_layer(path, known)
    models = {name: [layer for model, layer in keys_of if model == name] for name in (UNET, *TEXT_ENCODERS)}
    configs = peft_configs(path, header, models)
    read = _Layers(path)
    for (model, layer), keyed in sorted(keys_of.items()):
        name = layer if model == UNET else f"{model}.{layer}"
        read.add(name, layer, {role: tensors[key] for role, key in keyed.items()}, configs[model])
    _check_complete(path, read.pairs.keys() | read.changes.keys(), configs[UNET])
    style = " and ".join(sorted({part.style for part in known.values()}))
    return LoraFile(style, header, read.pairs, read.changes, embeddings, " and ".join(sorted(read.names)))


@dataclass
class _Layers:
    """The layers of a file, read one by one."""

    file: Path
    pairs: dict[str, Pair] = field(default_factory=dict[str, Pair])
    changes: dict[str, WeightChange] = field(default_factory=dict[str, WeightChange])
    names: set[str] = field(default_factory=set[str])

    def add(self, path: str, layer: str, tensors: dict[str, Tensor], config: PeftConfig) -> None:
        """Add a layer. ``layer`` is its path in its model; ``path`` begins with a text encoder's name."""
        if "lora_mid" in tensors and {"down", "lora_mid"} <= tensors.keys():
            tensors["down"] = self._formula(layer, lambda: methods.tucker(tensors["down"], tensors.pop("lora_mid")))
        if "magnitude" in tensors:  # PEFT's, one length of each row; a convolution's has the shape (1, out, 1, 1)
            tensors["dora_scale"] = tensors.pop("magnitude").reshape(-1)
        pair = None
        if {"down", "up"} & tensors.keys():
            pair = _pair(self.file, layer, tensors, config)
            self.pairs[path] = pair
        if config.is_dora and "dora_scale" not in tensors:
            raise _damaged(self.file, layer, "is DoRA by its config and holds no magnitudes")
        if (method := methods.method_of(tensors)) is not None:
            self.names.add(method)
            self._add_method(path, layer, tensors, pair, config)
        elif pair is None:
            self.pairs[path] = _pair(self.file, layer, tensors, config)  # raises an error that names the missing tensor
        elif rest := tensors.keys() - {"down", "up", "alpha"}:
            raise _damaged(self.file, layer, f"holds '{min(rest)}' beside a LoRA")

    def _add_method(
        self, path: str, layer: str, tensors: Mapping[str, Tensor], pair: Pair | None, config: PeftConfig
    ) -> None:
        for tensor in tensors.values():
            if not _finite(tensor):
                raise _damaged(self.file, layer, "holds NaN or infinite weights")
        rank = config.rank_of(layer)
        alpha = _number(tensors["alpha"]) if "alpha" in tensors else config.alpha_of(layer, rank or 1)
        scale = 1.0 if pair is None or pair.alpha is None else pair.alpha / pair.rank
        in_config = alpha / rank if alpha is not None and rank and "alpha" not in tensors else None
        for parameter, vector in methods.vector_differences(tensors, scale).items():
            self.pairs[f"{path}.{parameter}"] = Pair(torch.ones(1, 1), vector.float().reshape(-1, 1), None, 1.0)
        formula = partial(methods.difference, alpha=alpha, in_config=in_config)
        shape = self._formula(layer, lambda: formula({role: tensor.to("meta") for role, tensor in tensors.items()}))
        if shape is not None and shape.numel() > MOST_ENTRIES:
            raise _damaged(self.file, layer, f"is a matrix of {_shape(shape)}, which no layer is")
        delta = None if shape is None else formula(tensors)
        if pair is not None and delta is not None:
            raise _damaged(self.file, layer, "holds matrices of two methods")
        if pair is not None and "dora_scale" in tensors:
            delta = scale * (pair.b.float() @ pair.a.float())
        change = self._formula(layer, lambda: methods.weight_change(tensors, delta, alpha))
        if change is not None:
            self.changes[path] = change
            self.pairs.pop(path, None)
        elif delta is not None:
            full = low_rank_from_matrix(delta)
            self.pairs[path] = Pair(full.a, full.b, None, float(full.rank))

    def _formula(self, layer: str, compute: Callable[[], Any]) -> Any:
        try:
            return compute()
        except (KeyError, RuntimeError, IndexError, ValueError, AssertionError) as failure:
            raise _damaged(self.file, layer, "has matrices that do not belong together") from failure


def _embeddings(path: Path, file: Any, keys: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """Bundled embeddings: ``bundle_emb.{word}.string_to_param.*``, for SDXL ``...clip_l`` and ``...clip_g``."""
    words: dict[str, dict[str, Tensor]] = {}
    for key in keys:
        if not key.startswith(_BUNDLED):
            continue
        word, _, part = key.removeprefix(_BUNDLED).removesuffix(".string_to_param.*").rpartition(".")
        if part not in _ENCODERS:
            word, part = f"{word}.{part}" if word else part, "clip_l"
        vectors = file.get_tensor(key)
        if vectors.ndim != 2 or 0 in vectors.shape or not vectors.is_floating_point() or not _finite(vectors):
            raise TaraError(f"'{path}' has a damaged embedding of '{word}' ('{key}'). Download the file again.")
        words.setdefault(word, {})[_ENCODERS[part]] = vectors
    return words


def _zero_differences(file: Any, keys: Iterable[str]) -> set[str]:
    """Keys of differences that are all zeros. ComfyUI writes them for each bias and norm that was not changed."""
    return {key for key in keys if key.endswith((".diff", ".diff_b")) and not bool(file.get_tensor(key).any())}


def _known_parts(path: Path, keys: Iterable[str]) -> dict[str, Part]:
    """Parse each key. Refuses (TaraError) unknown keys, except the base weights in a saved U-Net."""
    found = parts(keys)
    saved_unet = "conv_in.weight" in found or "conv_in.base_layer.weight" in found
    known: dict[str, Part] = {}
    for key, part in found.items():
        if part is not None:
            known[key] = part
        elif method := other_method(key):
            raise TaraError(
                f"'{path}' contains {method} ('{key}'), which tara does not read. Use a plain LoRA, or extract one "
                "with the tool that wrote the file."
            )
        elif not saved_unet or "lora" in key or not key.startswith((*ROOTS, "conv_norm_out.")):
            raise _unknown(path, key)
    if not known:
        raise TaraError(f"'{path}' contains no LoRA weights. Give an adapter file.")
    return known


def _by_layer(path: Path, known: Mapping[str, Part]) -> dict[tuple[str, str], dict[str, str]]:
    layers: dict[tuple[str, str], dict[str, str]] = {}
    for key, part in known.items():
        keyed = layers.setdefault((part.model, part.layer), {})
        if part.role in keyed:
            raise TaraError(
                f"'{path}' has the layer '{part.layer}' twice, as '{keyed[part.role]}' and as '{key}'. Use a file "
                "with one style of keys."
            )
        keyed[part.role] = key
    return layers


def _pair(path: Path, layer: str, tensors: Mapping[str, Tensor], config: PeftConfig) -> Pair:
    missing = [role for role in ("down", "up") if role not in tensors]
    fault = f"has no {missing[0]} matrix" if missing else _fault(tensors["down"], tensors["up"], config.rank_of(layer))
    if not fault:
        a, b = tensors["down"], tensors["up"]
        alpha = _number(tensors["alpha"]) if "alpha" in tensors else config.alpha_of(layer, a.shape[0])
        if alpha is None or math.isfinite(alpha):
            return Pair(a.flatten(1), b.flatten(1), (a.shape[2], a.shape[3]) if a.ndim == 4 else None, alpha)
        fault = "has an alpha that is not a number"
    raise _damaged(path, layer, fault)


def _damaged(path: Path, layer: str, fault: str) -> TaraError:
    return TaraError(f"'{path}' is damaged: layer '{layer}' {fault}. Download the file again.")


def _fault(a: Tensor, b: Tensor, expected_rank: int | None) -> str | None:
    """The fault of a layer's down matrix (rank, in[, h, w]) and up matrix (out, rank[, 1, 1]), or None."""
    if a.ndim not in (2, 4) or b.ndim not in (2, 4) or b.shape[2:].numel() != 1 or a.shape[0] != b.shape[1]:
        return f"has matrices of {_shape(a)} and {_shape(b)}, which do not match"
    if 0 in (*a.shape, *b.shape):
        return f"has rank {len(a)}: matrices of {_shape(a)} and {_shape(b)}"
    if a.shape[0] > MOST_RANK:
        return f"has rank {a.shape[0]}, more than any layer allows"
    if expected_rank not in (None, a.shape[0]):
        return f"has rank {a.shape[0]}, but its config says {expected_rank}"
    if not (a.is_floating_point() and b.is_floating_point()):
        return f"is stored as {a.dtype} and {b.dtype}, which are not both floating-point types"
    return None if _finite(a) and _finite(b) else "holds NaN or infinite weights"


def _finite(matrix: Tensor) -> bool:
    # a finite sum proves that all terms are finite, in a sixth of the time; finite terms may overflow the sum
    return math.isfinite(matrix.sum(dtype=torch.float32)) or bool(torch.isfinite(matrix.float()).all())


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _number(alpha: Tensor) -> float:
    return float(alpha) if alpha.numel() == 1 else float("nan")


def _check_complete(path: Path, layers: Collection[str], config: PeftConfig) -> None:
    missing = [layer for layer in config.paths if layer not in layers]
    if missing:
        raise TaraError(
            f"'{path}' is damaged: its config names {len(config.paths)} layers, but {len(missing)} are missing, such "
            f"as '{missing[0]}'. Download the file again, or train the adapter again."
        )


def _unknown(path: Path, key: str) -> TaraError:
    return TaraError(
        f"'{path}' has the key '{key}', which tara does not know. It reads LoRAs for the U-Net of Stable Diffusion "
        "1.x, 2.x and SDXL in the styles of tara, PEFT, diffusers, kohya and ComfyUI."
    )
