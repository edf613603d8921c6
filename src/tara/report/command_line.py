"""Settings as flags of the command line."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


def flags(settings: BaseModel, defaults: Mapping[str, Any] | None = None) -> list[str]:
    """The flags for these settings.

    Settings equal to the model's defaults, or to ``defaults`` by name, are left out.
    """
    usual = {name: field.default for name, field in type(settings).model_fields.items()} | dict(defaults or {})
    changed = {name: value for name, value in settings.model_dump().items() if value not in (None, usual[name])}
    return [word for name, value in changed.items() for word in _flag(name.replace("_", "-"), value)]


def _flag(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, tuple):
        return [word for each in value for word in _flag(flag, each)]
    # a separate value that begins with a dash would be read as a flag
    return [f"--{flag}={value}"] if str(value).startswith("-") else [f"--{flag}", str(value)]
