"""Settings as flags of the command line."""

from typing import Any

from pydantic import BaseModel


def flags(settings: BaseModel) -> list[str]:
    """The flags that give these settings: those that differ from their defaults."""
    changed = settings.model_dump(exclude_defaults=True)
    return [word for name, value in changed.items() for word in _flag(name.replace("_", "-"), value)]


def _flag(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, tuple):
        return [word for each in value for word in _flag(flag, each)]
    # a value that begins with a dash would be read as a flag of its own
    return [f"--{flag}={value}"] if str(value).startswith("-") else [f"--{flag}", str(value)]
