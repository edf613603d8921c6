"""The model hub: names on it, files from it, and what to say when it gives none."""

import re
import textwrap
from pathlib import Path

from tara.errors import TaraError

ADAPTER_FILE = "pytorch_lora_weights.safetensors"  # as diffusers' training scripts call it


def is_hub_id(name: str) -> bool:
    """Whether a name could be a repository, ``owner/name``, and is not plainly a file."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None and not name.endswith(".safetensors")


def fetch_file(repository: str, file: str, revision: str | None = None) -> Path:
    """A file of a repository: the copy that was fetched before, else a new one.

    Raises:
        TaraError: when the hub cannot be reached, or has no such repository or file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except (OSError, ValueError, EntryNotFoundError) as failure:  # the hub's own errors are kinds of these
        raise not_fetched(repository, failure, file, revision=revision) from failure


def not_fetched(repository: str, failure: Exception, *files: str, revision: str | None = None) -> TaraError:
    """What to tell when a repository's files are neither here nor can be fetched."""
    command = " ".join(["hf download", repository, *files, *(["--revision", revision] if revision else [])])
    return TaraError(
        f"'{repository}' is no folder or file here, and the hub did not give it ({_reason(failure)}). Check the "
        f"name, or fetch it where there is a network: `{command}`."
    )


def _reason(failure: Exception) -> str:
    """The beginning of what a library tells in a paragraph."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    text = lines[0].rstrip(".") if lines else type(failure).__name__
    return textwrap.shorten(text.partition(" (")[0], 120, placeholder=" ...")
