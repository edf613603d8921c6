"""Bases by name: a short name, a pipeline folder, a checkpoint file or a hub id becomes a loaded base."""

import json
import tempfile
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import torch

from tara.errors import TaraError, TaraWarning, nearest
from tara.families.base import Base
from tara.families.family import Defaults
from tara.families.prediction import observed_prediction
from tara.families.settings import Precision, Prediction
from tara.families.single_file import CONFIGS, check_whole, load_single_file, read_contents, tell
from tara.storage.files import small_text
from tara.storage.hub import base_here, is_hub_id, not_fetched

ALIASES = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "stabilityai/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",  # no such repository
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",  # moved
}
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
PRECISIONS: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""``auto``, which is none of them, leaves it to `best_precision`."""
BFLOAT16_SINCE = (8, 0)  # CUDA's compute capability; older GPUs only emulate it, slowly
INDEX = "model_index.json"
DEFAULTS = "defaults.json"  # in a base's folder: settings that suit it, by the names of `Defaults`
NO_SAFETENSORS = "Could not find the necessary `safetensors` weights"  # as diffusers says of a repository
UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
# what `hf download` is told, because a base's repository also holds its weights in half a dozen other forms
NEEDED_FILES = ("--include", "*.json", "--include", "*.txt", "--include", "*/*.safetensors")
OTHER_PRECISIONS = ("--exclude", "*.fp16.*", "--exclude", "*.non_ema.*")
WANTED = "Give sd15, sdxl, a pipeline folder, a .safetensors checkpoint or a hub id"


def resolve_base(name: str | Path) -> str:
    """The folder, file or hub id behind a base's name: of ``sd15`` or ``sdxl``, or the name as it is."""
    return str(name) if base_here(name) else ALIASES.get(str(name), str(name))


def public_name(name: str) -> str:
    """What a file that is given away tells about a base: of a path the last part, anything else as it is."""
    return Path(name).absolute().name if Path(name).exists() else name


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
    """Load a base: every part in one precision on one device.

    Args:
        name: see `resolve_base`.
        device: cuda, mps or cpu; the best one found when None.
        precision: auto is the best one for the device; a VAE that overflows in fp16 is upcast where it is used.
        revision: branch, tag or commit, of a hub id.
        variant: of the files of a folder or hub id, such as ``fp16``.
        vae: VAE to use instead of the base's own: a folder, a ``.safetensors`` file or a hub id.
        prediction_type: what the network predicts; where neither this nor the file tells, it is tried, with a warning.

    Raises:
        TaraError: when there is no such base or device, or the base is of a kind that adapters cannot work on.
    """
    where, place = resolve_base(name), device_named(device)
    if precision not in get_args(Precision):
        hint = nearest(precision, get_args(Precision))
        raise TaraError(f"precision is '{precision}'.{hint} Choose one of {', '.join(get_args(Precision))}.")
    dtype = PRECISIONS.get(precision) or best_precision(place)
    for one in (where, vae):
        if one is not None:
            _refuse_pickle(one)
    if Path(where).is_file():
        pipe = _from_file(Path(where), dtype, vae, prediction_type, place)
    else:
        pipe = _from_folder_or_hub(str(name), where, dtype, revision, variant)
        if vae is not None:
            _replace_vae(pipe, vae, dtype)
        if prediction_type is not None:
            pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=prediction_type)
    base = Base(pipe)
    base.defaults = _own_defaults(Path(where), base.defaults)
    pipe.to(place)
    return base


def _own_defaults(folder: Path, defaults: Defaults) -> Defaults:
    """The family's defaults with those in a base's own folder, where it has some."""
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


def load_vae(name: str | Path, dtype: torch.dtype, configs: Path) -> Any:
    """Load an autoencoder: a folder (also of a whole pipeline), a ``.safetensors`` file or a hub id.

    Args:
        name: what to load.
        dtype: its precision.
        configs: folder whose ``vae/config.json`` describes a file in the original layout, which does not tell itself.

    Raises:
        TaraError: when there is none, or it cannot be read.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    path = Path(name)
    try:
        if path.is_file():
            vae = AutoencoderKL.from_single_file(
                str(path), config=str(configs), subfolder="vae", torch_dtype=dtype, local_files_only=True
            )
            check_whole(path, "autoencoder", vae)
            return vae
        subfolder = "vae" if (path / "vae").is_dir() else None
        return AutoencoderKL.from_pretrained(str(name), subfolder=subfolder, torch_dtype=dtype, use_safetensors=True)
    except Exception as failure:  # as for a whole base
        if not path.exists() and is_hub_id(str(name)):
            raise not_fetched(str(name), failure) from failure
        raise TaraError(
            f"The autoencoder '{name}' cannot be loaded ({_first_line(failure)}). Give a diffusers folder, a "
            ".safetensors file or a hub id."
        ) from failure


def best_device() -> str:
    """``cuda`` where there is one, else ``mps``, else ``cpu``."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def best_precision(device: torch.device) -> torch.dtype:
    """What a base is loaded in on a device: bfloat16 where the GPU has it, float16 on older ones, float32 elsewhere."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= BFLOAT16_SINCE else torch.float16


def device_named(name: str | None) -> torch.device:
    """The device of this name, or the best one found.

    Raises:
        TaraError: when there is none.
    """
    try:
        device = torch.device(name or best_device())
        torch.empty(1, device=device).item()  # which also says no to devices that only pretend, such as meta
    except (RuntimeError, AssertionError, NotImplementedError) as failure:  # torch's ways to say no
        raise TaraError(f"There is no device '{name}' here. Give cpu, or leave it out for the best one.") from failure
    return device


def _from_file(
    path: Path, dtype: torch.dtype, vae: str | Path | None, prediction_type: Prediction | None, device: torch.device
) -> Any:
    if path.suffix != ".safetensors":
        raise TaraError(f"'{path}' is no base. {WANTED}.")
    contents = read_contents(path)
    if prediction_type is not None:
        contents = replace(contents, prediction_type=prediction_type)
    autoencoder = None if vae is None else load_vae(vae, dtype, CONFIGS / contents.family)
    pipe = load_single_file(path, dtype, autoencoder, contents=contents)
    if contents.is_open:
        seen = observed_prediction(pipe.to(device))
        tell(pipe, replace(contents, prediction_type=seen))
        other = "v_prediction" if seen == "epsilon" else "epsilon"
        warnings.warn(
            f"'{path}' does not tell what its U-Net predicts; by its answer to noise it is {seen}. If pictures of it "
            f"are mere noise, give --prediction-type {other}.",
            TaraWarning,
            stacklevel=2,
        )
    return pipe


def _from_folder_or_hub(name: str, where: str, dtype: torch.dtype, revision: str | None, variant: str | None) -> Any:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    folder = Path(where)
    if folder.is_dir() and any(folder.glob("unet/*.bin")) and not any(folder.glob("unet/*.safetensors")):
        raise _pickled(f"'{name}' holds its weights as .bin files, which")
    try:
        # a pickled weight file can run code when it is opened, so those are never read
        return DiffusionPipeline.from_pretrained(
            where,
            dtype=dtype,
            revision=revision,
            variant=variant,
            use_safetensors=True,
            **_left_out(where, revision),
        )
    except Exception as failure:  # a strange config or network causes errors of any kind
        if str(failure).startswith(NO_SAFETENSORS):
            raise _pickled(f"'{where}' on the hub holds weights as .bin files alone, which") from failure
        if not folder.exists() and is_hub_id(where):
            wanted = NEEDED_FILES if variant else (*NEEDED_FILES, *OTHER_PRECISIONS)
            raise not_fetched(where, failure, *wanted, revision=revision) from failure
        raise TaraError(f"The base '{name}' cannot be loaded ({_first_line(failure)}). {WANTED}.") from failure


def _left_out(where: str, revision: str | None) -> dict[str, Any]:
    """The arguments that load a pipeline without what drawing does not use, so that it needs no download or memory."""
    from huggingface_hub import hf_hub_download

    folder = Path(where)
    index = folder / INDEX if folder.is_dir() else Path(hf_hub_download(where, INDEX, revision=revision))
    named: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
    arguments: dict[str, Any] = {name: None for name in UNUSED_PARTS if name in named}
    return arguments | ({"requires_safety_checker": False} if "safety_checker" in named else {})


def _replace_vae(pipe: Any, name: str | Path, dtype: torch.dtype) -> None:
    with tempfile.TemporaryDirectory() as configs:
        pipe.vae.save_config(Path(configs) / "vae")
        vae = load_vae(name, dtype, Path(configs))
    theirs, ours = ((int(part.config.latent_channels), len(part.config.block_out_channels)) for part in (vae, pipe.vae))
    if theirs != ours:
        raise TaraError(
            f"The autoencoder has {theirs[0]} channels at 1/{2 ** (theirs[1] - 1)} of a picture's size, the base needs "
            f"{ours[0]} at 1/{2 ** (ours[1] - 1)}. Give one that was made for this base."
        )
    pipe.register_modules(vae=vae)


def _refuse_pickle(name: str | Path) -> None:
    if Path(name).suffix.lower() in PICKLES:
        raise _pickled(f"'{name}' is a pickle file, which")


def _pickled(what: str) -> TaraError:
    return TaraError(
        f"{what} can run code when it is opened. Take the same model's .safetensors, or convert it where that is safe."
    )


def _first_line(failure: Exception) -> str:
    return (str(failure).strip().splitlines() or [type(failure).__name__])[0]
