"""The settings of a training in effect on its base: value, default, and the base or family that sets the default."""

import re
from dataclasses import dataclass
from typing import Any

import torch

from tara.families.base import Base
from tara.families.loading import PRECISIONS, best_device
from tara.training.settings import BASE_DEFAULTS, TrainSettings

SHOWN_FIRST = ("resolution", "rank", "alpha", "learning_rate", "lr_scheduler", "steps", "batch_size", "targets", "seed")
"""The settings that a training says when it begins."""


@dataclass(frozen=True, kw_only=True)
class ResolvedSetting:
    """The value of a setting in effect, and its default: the value that it has if only this setting is left out."""

    name: str
    value: Any
    default: Any
    default_of: str
    """Whose default it is: ``base`` for the base's own, a family's name, or empty where all bases share it."""

    @property
    def is_default(self) -> bool:
        """Whether the value equals the default."""
        return self.value == self.default


def resolved_settings(settings: TrainSettings, base: Base) -> list[ResolvedSetting]:
    """Every setting except the base, in the order of `TrainSettings`.

    ``settings`` already include the base's defaults.
    """
    in_effect = resolved_values(settings, base)
    resolved: list[ResolvedSetting] = []
    for name in in_effect.keys() - {"base"}:
        without = resolved_values(settings.model_copy(update={name: _default(name, settings, base)}), base)
        default = best_device() if name == "device" else without[name]
        resolved.append(
            ResolvedSetting(name=name, value=in_effect[name], default=default, default_of=_owner(name, base))
        )
    return sorted(resolved, key=lambda setting: list(TrainSettings.model_fields).index(setting.name))


def resolved_values(settings: TrainSettings, base: Base) -> dict[str, Any]:
    """Every setting by name, as JSON values. None and ``auto`` are replaced by the value that the base determines."""
    return settings.model_dump(mode="json") | {
        "alpha": settings.rank if settings.alpha is None else settings.alpha,
        "learning_rate": settings.peak_learning_rate,
        "resolution": settings.resolution or base.resolution,
        "precision": next((name for name, dtype in PRECISIONS.items() if dtype == base.dtype), "auto"),
        "preview_every": settings.preview_interval,
        "device": settings.device or base.device.type,
        "threads": settings.threads or torch.get_num_threads(),
    }


def settings_summary(settings: TrainSettings, base: Base) -> str:
    """The settings that a training prints at its start: one line, and a second one if the base has its own defaults."""
    shown = {setting.name: setting for setting in resolved_settings(settings, base) if setting.name in SHOWN_FIRST}
    own = {name for name, setting in shown.items() if setting.is_default and setting.default_of == "base"}
    line = ", ".join(f"{name} {setting_text(name, shown[name].value)}{'*' * (name in own)}" for name in SHOWN_FIRST)
    return f"Settings: {line}." + ("\n(* the base's own default)" if own else "")


def setting_text(name: str, value: Any) -> str:
    """A setting's value as text. For None, the text is what the setting's description says about its default."""
    if value is None:
        described = re.search(r"\[default: (.+)\]", TrainSettings.model_fields[name].description or "")
        return described[1] if described else "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _default(name: str, settings: TrainSettings, base: Base) -> Any:
    if name not in BASE_DEFAULTS:
        return TrainSettings.model_fields[name].default
    finds_its_own = name == "learning_rate" and settings.optimizer == "prodigy"
    return None if finds_its_own else getattr(base.defaults, name)


def _owner(name: str, base: Base) -> str:
    if name not in BASE_DEFAULTS:
        return ""
    of_family = getattr(base.family.defaults, name)
    return base.family.name if getattr(base.defaults, name) == of_family else "base"
