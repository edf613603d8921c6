"""Models of transformers by hub id or folder: whole and of the right kind, or a sentence."""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from tara.errors import TaraError
from tara.storage.hub import is_hub_id, not_fetched

WANTED = "Give its folder, or a hub id"
REFUSALS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError)
"""All that a strange folder can cause."""


def check_kind(name: str, known: Collection[str]) -> str:
    """The model type by its config, one of the ``known``.

    Raises:
        TaraError: when there is no such model, with the command that fetches it, or it is of another type.
    """
    from transformers import AutoConfig

    kind = str(load_part(AutoConfig, name).model_type)
    if kind not in known:
        raise TaraError(f"'{name}' is of the type {kind}. Give a model of one of these: {', '.join(known)}.")
    return kind


def load_model(kind: Any, name: str, device: torch.device) -> Any:
    """A frozen model in float32.

    Raises:
        TaraError: see `check_kind`; also when its file lacks weights.
    """
    model, told = load_part(kind, name, output_loading_info=True)
    # a head that nobody uses, and that DINO's file does not have
    missing = [key for key in sorted(told["missing_keys"]) if not key.startswith("pooler.")]
    if missing:
        raise TaraError(f"The model '{name}' is not whole: it lacks '{missing[0]}'. Fetch it again.")
    return model.float().eval().requires_grad_(False).to(device)


def load_part(kind: Any, name: str, **options: Any) -> Any:
    """A config, model, processor or tokenizer.

    Raises:
        TaraError: when it is not here, with the command that fetches it, or cannot be used.
    """
    if "Processor" in kind.__name__:
        options["backend"] = "pil"  # torchvision is not everywhere, and figures should not depend on it
    try:
        return kind.from_pretrained(name, **options)
    except REFUSALS as failure:
        if not Path(name).exists() and is_hub_id(name):
            raise not_fetched(name, failure) from failure
        if not Path(name).exists():
            raise TaraError(f"There is no model '{name}'. {WANTED}.") from failure
        reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0].rstrip(".")
        raise TaraError(f"The model '{name}' cannot be used ({reason}). {WANTED}.") from failure


def fingerprint(name: str, model: Any) -> str:
    """A name that changes when the model does: of a folder its files, of a hub id its commit."""
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{getattr(model.config, '_commit_hash', None)}"
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    told = repr([(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats])
    return f"{folder.name}@{hashlib.sha256(told.encode()).hexdigest()}"
