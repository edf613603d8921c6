"""The names of bases: a short name, a folder, a checkpoint file or a hub id."""

from pathlib import Path

from tara.errors import TaraError, nearest
from tara.storage.hub import is_hub_id

INDEX = "model_index.json"  # in the folder of a diffusers pipeline
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
SHORT_NAMES = ("sd15", "sdxl")
ALIASES = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "stabilityai/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",  # no such repository
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",  # moved
}


def check_base_name(name: str) -> None:
    """Refuse (TaraError) a name that is neither a short name, nor a folder or file on this machine, nor a hub id."""
    if base_here(name) or name in ALIASES:
        return
    path, known = Path(name), f"Known names: {', '.join(SHORT_NAMES)}."
    is_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or path.suffix in SUFFIXES
    if is_path or (len(path.parts) > 1 and path.parent.is_dir()):
        raise TaraError(f"There is no folder or file '{name}'. Correct the path, or give a base by name. {known}")
    if not is_hub_id(name):
        raise TaraError(
            f"There is no base '{name}'.{nearest(name.lower(), SHORT_NAMES)} {known} Or give a pipeline folder, a "
            ".safetensors checkpoint or a hub id, OWNER/NAME."
        )


def resolve_base(name: str | Path) -> str:
    """The folder, file or hub id of a base's name. ``sd15`` and ``sdxl`` are short names."""
    return str(name) if base_here(name) else ALIASES.get(str(name), str(name))


def public_name(name: str) -> str:
    """A base's name without its folder, for files that are shared. A hub id is not changed."""
    return Path(name).absolute().name if Path(name).exists() else name


def base_here(name: str | Path) -> Path | None:
    """The folder or file on this machine with this name. None for a short name or a hub id.

    A folder with a short name, such as ``sdxl``, is used only if it is a pipeline's: it may also hold adapters.
    """
    path = Path(name)
    try:
        there = (path / INDEX).is_file() if str(name) in SHORT_NAMES else path.exists()
    except OSError:  # the name is too long for a path
        return None
    return path if there else None
