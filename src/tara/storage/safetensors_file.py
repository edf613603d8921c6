"""Opens safetensors files, after a check of the size of their header."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tara.errors import TaraError

MOST_HEADER = 16 * 2**20  # bytes; the largest LoRA's header has a few hundred thousand bytes
MOST_TENSORS = 20_000  # a LoRA of all layers of SDXL and its text encoders, with alphas, has 4,000 tensors
LONGEST_NAME = 500  # characters


@contextmanager
def open_safetensors(path: Path, again: str = "Download the file again.") -> Generator[safe_open]:
    """A file's tensors and header, as the library gives them, for as long as they are read.

    Args:
        path: a file that is there.
        again: sentence that tells the user how to get an undamaged file.

    Raises:
        TaraError: when it is damaged or empty, or its header is larger than that of any adapter or base.
    """
    size = path.stat().st_size
    if size == 0:
        raise TaraError(f"'{path}' is empty (0 bytes). {again}")
    try:
        with path.open("rb") as raw:
            header = int.from_bytes(raw.read(8), "little")
        if MOST_HEADER < header <= size:  # a larger size is not that of a header; the library reports it
            raise TaraError(
                f"'{path}' has a header of {header >> 20} MiB, more than the limit of {MOST_HEADER >> 20} MiB. {again}"
            )
        with safe_open(path, framework="pt") as file:
            _check_names(path, file.keys(), again)
            yield file
    except (SafetensorError, OSError) as failure:
        raise TaraError(f"'{path}' is not a complete safetensors file ({failure}). {again}") from failure


def _check_names(path: Path, names: list[str], again: str) -> None:
    if len(names) > MOST_TENSORS:
        raise TaraError(f"'{path}' has {len(names)} tensors, more than the limit of {MOST_TENSORS}. {again}")
    longest = max(names, key=len, default="")
    if len(longest) > LONGEST_NAME:
        raise TaraError(f"'{path}' has a tensor name of {len(longest)} characters. {again}")
