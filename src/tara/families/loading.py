"""Loads a base from a short name, a pipeline folder, a checkpoint file or a hub id."""

import json
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import torch

from tara.errors import TaraError, first_line, nearest, warn
from tara.families.base import Base
from tara.families.base_names import INDEX, check_base_name, resolve_base
from tara.families.family import Defaults
from tara.families.settings import Precision, Prediction
from tara.families.single_file import (
    CONFIGS,
    check_whole,
    configure,
    load_single_file,
    observed_prediction,
    read_contents,
)
from tara.storage.files import small_text
from tara.storage.hub import is_hub_id, not_fetched, one_try

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
PRECISIONS: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BFLOAT16_SINCE = (8, 0)  # CUDA's compute capability; older GPUs emulate it slowly
DEFAULTS = "defaults.json"  # in a base's folder: settings that suit it, by the names of `Defaults`
MISSING_SAFETENSORS_MESSAGE = "Could not find the necessary `safetensors` weights"  # by diffusers
UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
# options of `hf download`: a base's repository also holds its weights in other forms
NEEDED_FILES = ("--include", "*.json", "--include", "*.txt", "--include", "*/*.safetensors")
OTHER_PRECISIONS = ("--exclude", "*.fp16.*", "--exclude", "*.non_ema.*")
ACCEPTED_BASES = "Give sd15, sdxl, a pipeline folder, a .safetensors checkpoint or a hub id."
ACCEPTED_VAES = "Give a diffusers folder, a .safetensors file or a hub id."


def load_base(
    name: str | Path,
    *,
    device: str | None = None,
    precision: Precision = "auto",
    revision: str | None = None,
    variant: str | None = None,
    vae: str | Path | None = None,
    prediction_type: Prediction | None = None,
) -> Base:
    """Load a base, with all components in one precision on one device.

    Args:
        name: see `resolve_base`.
        device: cuda, mps or cpu. None: the best one available.
        precision: auto, fp32, fp16 or bf16; auto: see `best_precision`. A VAE that overflows in fp16 runs in fp32.
        revision: branch, tag or commit of a hub id.
        variant: variant of the files in a folder or hub repository, such as ``fp16``. None: the files without one.
        vae: replaces the base's VAE: a folder, a ``.safetensors`` file or a hub id. None: the base's own.
        prediction_type: prediction type of the network. None: as the base says; else it is observed, with a warning.

    Raises:
        TaraError: when there is no such base or device, or adapters cannot work on the base.
    """
    where, on_device = resolve_base(name), device_named(device)
    if precision not in get_args(Precision):
        hint = nearest(precision, get_args(Precision))
        raise TaraError(f"precision is '{precision}'.{hint} Choose one of {', '.join(get_args(Precision))}.")
    dtype = PRECISIONS.get(precision) or best_precision(on_device)
    for file in (where, vae or ""):
        if Path(file).suffix.lower() in PICKLES:
            raise _pickled(f"'{file}' is a pickle file, which")
    check_base_name(str(name))
    if Path(where).is_file():
        pipe = _from_file(Path(where), dtype, vae, prediction_type, on_device)
    else:
        pipe = _from_folder_or_hub(str(name), where, dtype, revision, variant)
        if vae is not None:
            _replace_vae(pipe, vae, dtype)
        if prediction_type is not None:
            pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=prediction_type)
    base = Base(pipe)
    base.defaults = _with_own_defaults(Path(where), base.defaults)
    pipe.to(on_device)
    return base


def _with_own_defaults(folder: Path, defaults: Defaults) -> Defaults:
    """The family's defaults, overridden by `DEFAULTS` in the base's folder if it is there."""
    path = folder / DEFAULTS
    if not path.is_file():
        return defaults
    try:
        values: dict[str, Any] = dict(json.loads(small_text(path)))
        unknown = values.keys() - {field.name for field in fields(Defaults)}
        if unknown:
            raise ValueError(f"there is no setting '{min(unknown)}'")
        return replace(defaults, **values)
    except (OSError, ValueError, TypeError) as failure:
        raise TaraError(f"'{path}' cannot be used ({failure}). Correct it, or delete it.") from failure


def best_device() -> str:
    """``cuda`` where there is one, else ``mps``, else ``cpu``."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def best_precision(device: torch.device) -> torch.dtype:
    """The precision of a base on a device: bfloat16 if the GPU has it, float16 on older GPUs, float32 elsewhere."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= BFLOAT16_SINCE else torch.float16


def device_named(name: str | None) -> torch.device:
    """The device of this name. None: the best one available. Raises TaraError if the device is not available."""
    try:
        device = torch.device(name or best_device())
        torch.empty(1, device=device).item()  # also fails on devices without memory, such as meta
    except (RuntimeError, AssertionError, NotImplementedError) as failure:  # of torch
        raise TaraError(f"There is no device '{name}' here. Give cpu, or leave it out for the best one.") from failure
    return device


def _from_file(
    path: Path, dtype: torch.dtype, vae: str | Path | None, prediction_type: Prediction | None, device: torch.device
) -> Any:
    if path.suffix != ".safetensors":
        raise TaraError(f"'{path}' is not a base. {ACCEPTED_BASES}")
    contents = read_contents(path)
    if prediction_type is not None:
        contents = replace(contents, prediction_type=prediction_type)
    own_vae = None if vae is None else _load_vae(vae, dtype, CONFIGS / contents.family)
    pipe = load_single_file(path, dtype, own_vae, contents=contents)
    if contents.is_ambiguous:
        observed = observed_prediction(pipe.to(device))
        configure(pipe, replace(contents, prediction_type=observed))
        other = "v_prediction" if observed == "epsilon" else "epsilon"
        warn(
            f"'{path}' does not say what its U-Net predicts; its output for pure noise looks like {observed}. If its "
            f"images are noise, give --prediction-type {other}."
        )
    return pipe


def _from_folder_or_hub(name: str, where: str, dtype: torch.dtype, revision: str | None, variant: str | None) -> Any:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    folder = Path(where)
    if folder.is_dir() and any(folder.glob("unet/*.bin")) and not any(folder.glob("unet/*.safetensors")):
        raise _pickled(f"'{name}' holds its weights as .bin files, which")
    if folder.exists():
        _check_parts(folder)
    try:
        with one_try(where):
            return DiffusionPipeline.from_pretrained(
                where,
                dtype=dtype,
                revision=revision,
                variant=variant,
                use_safetensors=True,  # a pickled file can run code when it is opened
                **_without_unused_parts(where, revision),
            )
    except Exception as failure:  # a strange config or network causes errors of any kind
        if str(failure).startswith(MISSING_SAFETENSORS_MESSAGE):
            raise _pickled(f"'{where}' on the hub holds weights as .bin files alone, which") from failure
        if not folder.exists() and is_hub_id(where):
            files = NEEDED_FILES if variant else (*NEEDED_FILES, *OTHER_PRECISIONS)
            raise not_fetched(where, failure, *files, revision=revision) from failure
        raise TaraError(f"The base '{name}' cannot be loaded ({first_line(failure)}). {ACCEPTED_BASES}") from failure


def _check_parts(folder: Path) -> None:
    """Refuse (TaraError) a pipeline folder that lacks a component, because the libraries' messages do not name it."""
    index = folder / INDEX
    if not index.is_file():
        raise TaraError(f"'{folder}' is no pipeline folder: it has no {INDEX}. {ACCEPTED_BASES}")
    try:
        parts = dict[str, Any](json.loads(small_text(index)))
    except (ValueError, TypeError, RecursionError) as failure:
        raise TaraError(f"'{index}' is damaged ({first_line(failure)}). Download the pipeline again.") from failure
    for name, kind in parts.items():
        if isinstance(kind, list) and kind[0] and name not in UNUSED_PARTS and not any((folder / name).glob("*")):
            raise TaraError(
                f"The base '{folder}' has no {name}: the folder '{folder / name}' is missing or empty. Copy or "
                "download the whole pipeline."
            )


def _without_unused_parts(where: str, revision: str | None) -> dict[str, Any]:
    """The arguments that load a pipeline without the parts that generation does not use."""
    from huggingface_hub import hf_hub_download

    folder = Path(where)
    index = folder / INDEX if folder.is_dir() else Path(hf_hub_download(where, INDEX, revision=revision))
    parts: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
    arguments: dict[str, Any] = {name: None for name in UNUSED_PARTS if name in parts}
    return arguments | ({"requires_safety_checker": False} if "safety_checker" in parts else {})


def _replace_vae(pipe: Any, name: str | Path, dtype: torch.dtype) -> None:
    with tempfile.TemporaryDirectory() as configs:
        pipe.vae.save_config(Path(configs) / "vae")
        vae = _load_vae(name, dtype, Path(configs))
    theirs, ours = ((int(part.config.latent_channels), len(part.config.block_out_channels)) for part in (vae, pipe.vae))
    if theirs != ours:
        raise TaraError(
            f"The VAE has {theirs[0]} channels at 1/{2 ** (theirs[1] - 1)} of the image size, but the base needs "
            f"{ours[0]} at 1/{2 ** (ours[1] - 1)}. Give a VAE that fits this base."
        )
    pipe.register_modules(vae=vae)


def _load_vae(name: str | Path, dtype: torch.dtype, configs: Path) -> Any:
    """Load a VAE. A file in the original layout is loaded with the config ``configs/vae/config.json``."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    path = Path(name)
    try:
        if path.is_file():
            vae = AutoencoderKL.from_single_file(
                str(path), config=str(configs), subfolder="vae", torch_dtype=dtype, local_files_only=True
            )
            check_whole(path, "VAE", vae)
            return vae
        subfolder = "vae" if (path / "vae").is_dir() else None
        with one_try(str(name)):
            return AutoencoderKL.from_pretrained(
                str(name), subfolder=subfolder, torch_dtype=dtype, use_safetensors=True
            )
    except Exception as failure:  # as for a whole base
        if not path.exists() and is_hub_id(str(name)):
            raise not_fetched(str(name), failure) from failure
        raise TaraError(f"The VAE '{name}' cannot be loaded ({first_line(failure)}). {ACCEPTED_VAES}") from failure


def _pickled(what: str) -> TaraError:
    return TaraError(
        f"{what} can run code when it is opened. Use the model's .safetensors file, or convert it where that is safe."
    )
