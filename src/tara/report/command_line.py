"""Settings as flags of the command line."""

from typing import Any

from pydantic import BaseModel


def flags(settings: BaseModel) -> list[str]:
    """The flags that give these settings: those that differ from their defaults."""
    changed: list[str] = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if field.is_required() or value != field.get_default(call_default_factory=True):
            changed += _flag(name.replace("_", "-"), value)
    return changed


def _flag(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, tuple):
        return [word for each in value for word in _flag(flag, each)]
    # a value that begins with a dash would be read as a flag of its own
    return [f"--{flag}={value}"] if str(value).startswith("-") else [f"--{flag}", str(value)]
