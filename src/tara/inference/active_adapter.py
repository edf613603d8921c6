"""An adapter with the options for one image: weights and words. Parses texts such as ``FILE:0.8``."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tara.adapters.adapter import Adapter, load_adapter
from tara.errors import TaraError, nearest, warn

OPTIONS = ("weight", "rare_word", "class_word", "global", "alpha")
MOST_NUMBER = 1e6
PUBLISHED_ALPHA = 32
"""Default alpha of the published SD 1.5 script. Its files are whole U-Nets and store no alpha."""


@dataclass(frozen=True, eq=False)
class ActiveAdapter:
    """An adapter with the options for one image.

    ``weight`` scales the whole adapter. ``global_weight`` is a further factor of its global part. If ``rare_word`` or
    ``class_word`` is empty, the card's word is used.
    """

    adapter: Adapter
    weight: float = 1.0
    rare_word: str = ""
    class_word: str = ""
    global_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rare_word", "class_word"):
            if not getattr(self, name):
                object.__setattr__(self, name, getattr(self.adapter.card, name))

    @property
    def name(self) -> str:
        return self.adapter.name

    @property
    def is_style(self) -> bool:
        """Whether the adapter is a style, which acts on the whole image."""
        return self.adapter.card.is_style or self.class_word.casefold() == "style"

    @property
    def global_strength(self) -> float:
        """The factor of the global part; 0 if the adapter has no global part."""
        return self.weight * self.global_weight if self.adapter.global_deltas else 0.0

    @property
    def order(self) -> tuple[str, str, str, float]:
        """Sort key for summation, so that the order of the adapters does not change any bit of the result."""
        return self.rare_word, self.class_word, self.name, self.weight


ActiveAdapters = tuple[ActiveAdapter, ...]
AdapterLike = str | Path | Adapter | ActiveAdapter
"""A file or hub id, with or without options (``:key=value,...``), an `Adapter` or an `ActiveAdapter`."""


def split_options(text: str) -> tuple[str, str]:
    """Split ``FILE:0.8`` at the last colon into ``FILE`` and ``0.8``. A path that exists is not split."""
    name, colon, options = text.rpartition(":")
    return (name, options) if colon and not Path(text).exists() else (text, "")


def parse_adapter(text: str) -> ActiveAdapter:
    """Load ``FILE[:key=value,...]`` with keys from `OPTIONS`. ``FILE:0.8`` means ``FILE:weight=0.8``.

    Raises:
        TaraError: for an unknown key, a value that is no number, or a file that `load_adapter` refuses.
    """
    path, options = split_options(text)
    given: dict[str, str] = {}
    for option in filter(None, (part.strip() for part in options.split(","))):
        key, equals, value = option.partition("=")
        key, value = (key.strip(), value.strip()) if equals else ("weight", key.strip())
        if key not in OPTIONS:
            raise TaraError(f"'{text}' has an unknown key '{key}'.{nearest(key, OPTIONS)} Known: {', '.join(OPTIONS)}.")
        if not value:
            raise TaraError(f"'{text}': {key} is empty. Write a value after '{key}=', or leave it out.")
        given[key] = value
    alpha = _number(text, "alpha", given["alpha"]) if "alpha" in given else None
    adapter = load_adapter(path, alpha)
    if alpha is None:
        warn_of_lost_scale(adapter)
    return ActiveAdapter(
        adapter,
        weight=_number(text, "weight", given.get("weight", "1")),
        rare_word=given.get("rare_word", ""),
        class_word=given.get("class_word", ""),
        global_weight=_number(text, "global", given.get("global", "1")),
    )


def warn_of_lost_scale(adapter: Adapter) -> None:
    """Warn (TaraWarning) if a file does not store the scale of its training, or if the adapter changes nothing."""
    card = adapter.card
    if (card.source, card.family) == ("saved U-Net", "sd1") and card.alpha == card.rank != PUBLISHED_ALPHA:
        warn(
            f"{adapter.name} looks like a file of the published SD 1.5 script, which trains at scale "
            f"{PUBLISHED_ALPHA / card.rank:g} (alpha {PUBLISHED_ALPHA}, rank {card.rank}) and stores no scale. It acts "
            f"at scale 1 here, as in the published inference script; {adapter.name}:alpha={PUBLISHED_ALPHA} restores "
            "the scale of its training."
        )
    if not adapter.weight_changes and not any(delta.scale and delta.norm() for delta in adapter.all_layers.values()):
        cause = "its alpha is 0" if all(delta.scale == 0 for delta in adapter.all_layers.values()) else "all zeros"
        warn(f"{adapter.name} changes nothing: {cause}. Train it again, or give it an alpha: {adapter.name}:alpha=8.")


def _number(text: str, key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not abs(number) <= MOST_NUMBER:
        raise TaraError(f"'{text}': {key} is '{value}', not a valid number. Write for instance {key}=0.8.")
    return number


def as_active_adapter(adapter: AdapterLike) -> ActiveAdapter:
    """Load an adapter if necessary, and return it with its options."""
    if isinstance(adapter, ActiveAdapter):
        return adapter
    if isinstance(adapter, Adapter):
        return ActiveAdapter(adapter)
    return parse_adapter(str(adapter))


def check_named(adapters: Iterable[ActiveAdapter]) -> None:
    """Refuse (TaraError) an adapter without a rare word."""
    for active in adapters:
        if not active.rare_word:
            raise TaraError(
                f"{active.name} is a LoRA of another tool, which stores no rare word. Add the rare word and the class "
                f"word: {active.name}:rare_word=xlo,class_word=dog."
            )
