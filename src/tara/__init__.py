"""Several personal concepts in one image: token-aware low-rank adapters for diffusion models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tara.adapters.adapter import Adapter, load_adapter
    from tara.errors import TaraError
    from tara.inference.pipeline import Pipeline
    from tara.inference.prepare import prepare, prepared, release
    from tara.training.run.run import train

    __version__: str

__all__ = [
    "Adapter",
    "Pipeline",
    "TaraError",
    "__version__",
    "load_adapter",
    "prepare",
    "prepared",
    "release",
    "train",
]

_MODULES = {
    "Adapter": "tara.adapters.adapter",
    "Pipeline": "tara.inference.pipeline",
    "TaraError": "tara.errors",
    "load_adapter": "tara.adapters.adapter",
    "prepare": "tara.inference.prepare",
    "prepared": "tara.inference.prepare",
    "release": "tara.inference.prepare",
    "train": "tara.training.run.run",
}


def __getattr__(name: str) -> Any:
    # torch and diffusers take seconds to import: `import tara` and `tara --help` do without until a name is used
    if name == "__version__":
        return import_module("tara.errors").tara_version()
    if name not in _MODULES:
        raise AttributeError(f"module 'tara' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
