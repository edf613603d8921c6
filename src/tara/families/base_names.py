"""What people call a base: a short name, a folder, a checkpoint file or a hub id."""

from pathlib import Path

INDEX = "model_index.json"  # in the folder of a diffusers pipeline
SHORT_NAMES = ("sd15", "sdxl")
ALIASES = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "stabilityai/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",  # no such repository
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",  # moved
}


def resolve_base(name: str | Path) -> str:
    """The folder, file or hub id that a base's name stands for: ``sd15`` and ``sdxl`` are short names."""
    return str(name) if base_here(name) else ALIASES.get(str(name), str(name))


def public_name(name: str) -> str:
    """A base's name without its folder, for files that are shared; a hub id as it is."""
    return Path(name).absolute().name if Path(name).exists() else name


def base_here(name: str | Path) -> Path | None:
    """The folder or file here that a base's name stands for; None for a short name or a hub id.

    Before a short name only a pipeline's folder comes: one called ``sdxl`` may as well hold what was trained on it.
    """
    path = Path(name)
    try:
        there = (path / INDEX).is_file() if str(name) in SHORT_NAMES else path.exists()
    except OSError:  # too long for a file
        return None
    return path if there else None
