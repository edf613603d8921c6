"""Finds the weights file of an adapter that is given as a file, a folder of a tool, or a repository on the hub."""

from pathlib import Path

from tara.adapters.formats.peft_config import WEIGHTS_FILE
from tara.errors import TaraError, nearest
from tara.storage.hub import ADAPTER_FILE, fetched_adapter
from tara.storage.safetensors_file import open_safetensors

AGAIN = "Download the file again, or train the adapter again."
# in a folder, the first of these that exists is used
_IN_FOLDERS = (
    WEIGHTS_FILE,
    ADAPTER_FILE,
    "diffusion_pytorch_model.safetensors",
    f"unet/{WEIGHTS_FILE}",
    "unet/diffusion_pytorch_model.safetensors",
)
_PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}


def lora_file(path: Path) -> Path:
    """The weights file of an adapter.

    ``path`` is the file, or a folder of PEFT, of diffusers or with a saved U-Net. If no such file or folder exists, it
    is a hub id, ``owner/name`` or ``owner/name/file.safetensors``, whose local copy is returned.

    Raises:
        TaraError: when there is no weights file, only a pickled one, or a second one for a text encoder.
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
    raise TaraError(
        f"There is no adapter file in the folder '{folder}'. tara looks for {' or '.join(_IN_FOLDERS)} there."
    )


def _check_alone(folder: Path) -> None:
    """Refuse (TaraError) a folder with a second LoRA, for a text encoder."""
    for file in sorted(folder.glob("text_encoder*/*.safetensors")):
        with open_safetensors(file, AGAIN) as weights:
            keys = list(weights.keys())
        if any("lora" in key for key in keys):
            raise TaraError(
                f"'{file}' has LoRA layers of a text encoder in a separate file, which tara does not read. "
                f"Give '{folder / 'unet'}' to use the U-Net's layers only."
            )


def read_names(path: Path) -> tuple[list[str], dict[str, str]]:
    """Read the keys and the header of an adapter file of any family, without its weights. Raises as `lora_file`."""
    with open_safetensors(lora_file(path), AGAIN) as file:
        return list(file.keys()), dict(file.metadata() or {})


def _pickle(path: Path) -> TaraError:
    return TaraError(f"'{path}' is a pickle file, which can run code when it is opened. Use a .safetensors file.")
