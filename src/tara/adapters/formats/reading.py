"""Any LoRA file to pairs of matrices by layer; what a pair cannot stand for is refused by name, never dropped."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from tara.adapters.formats.names import ROOTS
from tara.adapters.formats.peft_config import WEIGHTS_FILE, PeftConfig, folder_config, header_configs
from tara.adapters.formats.styles import DIFFERENCES, UNET, Part, is_embedding, other_method, parts
from tara.errors import TaraError, nearest
from tara.families.text import TEXT_ENCODERS
from tara.storage.hub import ADAPTER_FILE, fetched_adapter
from tara.storage.safetensors_file import opened

AGAIN = "Get the file again, or train the adapter again."
MOST_RANK = 10_240  # the width of the widest layer of SDXL: more than that says nothing more

# in a folder, the first that is there
_IN_FOLDERS = (
    WEIGHTS_FILE,
    ADAPTER_FILE,
    "diffusion_pytorch_model.safetensors",
    f"unet/{WEIGHTS_FILE}",
    "unet/diffusion_pytorch_model.safetensors",
)
_PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}


@dataclass(frozen=True, eq=False)
class Pair:
    """One layer's matrices: ``a`` (rank, d_in), ``b`` (d_out, rank); ``kernel`` as in `tara.core.lora.LowRank`.

    ``alpha`` is None when the file does not tell it.
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
    """The pairs in a file by model and path, its header, and the name of the style that its keys are in."""

    style: str
    header: Mapping[str, str]
    pairs: Mapping[tuple[str, str], Pair]


def lora_file(path: Path) -> Path:
    """The weights file that a name stands for.

    It is the file itself, the one inside a folder of PEFT, diffusers or a U-Net, or, where there is nothing of that
    name, the local copy of one on the hub: ``owner/name`` or ``owner/name/file.safetensors``.

    Raises:
        TaraError: when there is none, only a pickle, or a second one for a text encoder.
    """
    if path.suffix in _PICKLES and path.is_file():
        raise _pickle(path)
    if path.is_file():
        return path
    if path.is_dir():
        return _in_folder(path)
    if (fetched := fetched_adapter(path.as_posix())) is not None:
        return fetched
    known = [file.name for file in path.parent.glob("*.safetensors")] if path.parent.is_dir() else []
    raise TaraError(f"There is no adapter file '{path}'.{nearest(path.name, known)} Check its path.")


def _in_folder(folder: Path) -> Path:
    for name in _IN_FOLDERS:
        if (folder / name).is_file():
            if name.startswith("unet/"):
                _check_alone(folder)
            return folder / name
    lone = [file for file in folder.glob("*.safetensors") if not file.name.startswith(".")]
    if len(lone) == 1:
        return lone[0]
    for file in (*sorted(folder.iterdir()), *sorted(folder.glob("unet/*"))):
        if file.suffix in _PICKLES:
            raise _pickle(file)
    raise TaraError(f"There is no adapter file in the folder '{folder}'. A folder holds {' or '.join(_IN_FOLDERS)}.")


def _check_alone(folder: Path) -> None:
    """A folder of several models may have LoRA layers in its text encoders, too."""
    for file in sorted(folder.glob("text_encoder*/*.safetensors")):
        with opened(file, AGAIN) as weights:
            keys = list(weights.keys())
        if any("lora" in key for key in keys):
            raise TaraError(
                f"'{file}' has LoRA layers of a text encoder beside those in '{folder / 'unet'}', and tara reads one "
                f"file for both. Give '{folder / 'unet'}' to do without them."
            )


def read_lora(path: Path) -> LoraFile:
    """Read a LoRA of any known style onto the CPU, in the precision that it is stored in.

    Raises:
        TaraError: when the file is missing, damaged, incomplete, too strange, or holds what a pair cannot stand for.
    """
    path = lora_file(path)
    with opened(path, AGAIN) as file:
        keys, header = list(file.keys()), dict(file.metadata() or {})
        silent = _silent(file, keys)
        keys = [key for key in keys if key not in silent]
        if is_embedding(keys):
            raise TaraError(
                f"'{path}' is a textual inversion, not a LoRA. Load it into the pipeline with diffusers' "
                "pipe.load_textual_inversion; its word then works beside adapters."
            )
        known = _known_parts(path, keys)
        tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in known}
    models = (UNET, *TEXT_ENCODERS)
    configs = dict.fromkeys(models, folder_config(path)) | header_configs(path, header, models)
    layers = _by_layer(path, known)
    pairs = {
        (model, layer): _pair(path, layer, {role: tensors[key] for role, key in keyed.items()}, configs[model])
        for (model, layer), keyed in sorted(layers.items())
    }
    _check_complete(path, pairs, configs[UNET])
    return LoraFile(" and ".join(sorted({part.style for part in known.values()})), header, pairs)


def _silent(file: safe_open, keys: Iterable[str]) -> set[str]:
    """The differences that are zero: ComfyUI extracts one of every bias and norm, also of those that never changed."""
    return {key for key in keys if key.endswith(DIFFERENCES) and not bool(file.get_tensor(key).any())}


def _known_parts(path: Path, keys: Iterable[str]) -> dict[str, Part]:
    """What each tensor is; refuses all that is no part of a pair, but for the weights of a whole saved U-Net."""
    found = parts(keys)
    saved_unet = "conv_in.weight" in found or "conv_in.base_layer.weight" in found
    known: dict[str, Part] = {}
    for key, part in found.items():
        if part is not None:
            known[key] = part
        elif method := other_method(key):
            raise TaraError(
                f"'{path}' holds {method} ('{key}'), which tara cannot compose: it reads plain LoRA pairs. Ask for a "
                "plain LoRA of it, or extract one with its own tool."
            )
        elif not saved_unet or "lora" in key or not key.startswith((*ROOTS, "conv_norm_out.")):
            raise _unknown(path, key)
    if not known:
        raise TaraError(f"'{path}' is a file without weights of a LoRA. Give an adapter file.")
    return known


def _by_layer(path: Path, known: Mapping[str, Part]) -> dict[tuple[str, str], dict[str, str]]:
    layers: dict[tuple[str, str], dict[str, str]] = {}
    for key, part in known.items():
        keyed = layers.setdefault((part.model, part.layer), {})
        if part.role in keyed:
            raise TaraError(
                f"'{path}' holds the layer '{part.layer}' twice, as '{keyed[part.role]}' and as '{key}'. Get a file "
                "of one key style."
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
        fault = "has an alpha that is no number"
    raise TaraError(f"'{path}' is damaged: layer '{layer}' {fault}. Get the file again, or ask its maker.")


def _fault(a: Tensor, b: Tensor, expected_rank: int | None) -> str | None:
    """What is wrong with the down matrix (rank, in[, h, w]) and the up matrix (out, rank[, 1, 1]) of a layer."""
    if a.ndim not in (2, 4) or b.ndim not in (2, 4) or b.shape[2:].numel() != 1 or a.shape[0] != b.shape[1]:
        return f"has matrices of {_shape(a)} and {_shape(b)}, which are no pair"
    if 0 in (*a.shape, *b.shape):
        return f"has rank {len(a)}: matrices of {_shape(a)} and {_shape(b)}"
    if a.shape[0] > MOST_RANK:
        return f"has rank {a.shape[0]}, more than any layer has room for"
    if expected_rank not in (None, a.shape[0]):
        return f"has rank {a.shape[0]}, but its config says {expected_rank}"
    if not (a.is_floating_point() and b.is_floating_point()):
        return f"is stored as {a.dtype} and {b.dtype}, which are not both real numbers"
    return None if _finite(a) and _finite(b) else "holds NaN or infinite weights"


def _finite(matrix: Tensor) -> bool:
    # a sum is finite only if all its terms are, and takes a sixth of the time; terms that are may still overflow it
    return math.isfinite(matrix.sum(dtype=torch.float32)) or bool(torch.isfinite(matrix.float()).all())


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _number(alpha: Tensor) -> float:
    return float(alpha) if alpha.numel() == 1 else float("nan")


def _check_complete(path: Path, pairs: Mapping[tuple[str, str], Pair], config: PeftConfig) -> None:
    missing = [layer for layer in config.paths if (UNET, layer) not in pairs]
    if missing:
        raise TaraError(
            f"'{path}' is damaged: it names {len(config.paths)} layers and lacks {len(missing)} of them, such as "
            f"'{missing[0]}'. Get the file again, or train the adapter again."
        )


def _unknown(path: Path, key: str) -> TaraError:
    return TaraError(
        f"'{path}' holds the key '{key}', which tara does not know. It reads LoRAs for the U-Net of Stable Diffusion "
        "1.x, 2.x and SDXL in the styles of tara, PEFT, diffusers, kohya and ComfyUI."
    )


def _pickle(path: Path) -> TaraError:
    return TaraError(f"'{path}' is a pickle, which can run code when it is opened. Get it as .safetensors.")
