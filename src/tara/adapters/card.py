"""The card: the record in the header of an adapter file."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from tara.errors import TaraError, tara_version

FORMAT_VERSION = 1
CARD_KEY = "tara"  # the header entry of the file

Number = TypeVar("Number", int, float)

Context = Literal["prompt", "delta"]
"""Where the embedding of a rare word is taken from when an adapter is composed.

- ``prompt``: from the prompt itself, as published.
- ``delta``: the frozen keys and values are computed from the prompt, and the low-rank delta reads the embedding in the
  instance prompt. ``benchmarks/context_toyland.py`` compares both.
"""


class AdapterCard(BaseModel, frozen=True):
    """The metadata that an adapter file stores about itself.

    For another tool's file, words, phrase and family are empty if the file does not tell them.
    ``rank`` and ``alpha`` are those of most layers. ``rank_pattern`` and ``alpha_pattern`` hold those of the other
    layers by path, as in PEFT's ``LoraConfig``. Paths in a text encoder begin with its name.
    """

    format_version: int = Field(default=FORMAT_VERSION, ge=1)
    rare_word: str = Field(description="The word that stands for the concept")
    class_word: str = Field(description="What the concept is; may have several words")
    family: str = Field(description="Family of bases that the adapter fits, see tara.families.family.Family")
    base: str = Field(default="", description="The base that it was trained on, as the user named it")
    rank: int = Field(ge=1)
    alpha: FiniteFloat = Field(description="scale = alpha / rank, as PEFT counts")
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    alpha_pattern: dict[str, FiniteFloat] = Field(default_factory=dict)
    targets: str = Field(default="cross_kv", description="Which layers were trained: cross_kv or attention")
    text_kv: tuple[str, ...] = Field(
        default=("attn2.to_k", "attn2.to_v"),
        description="Endings of the layers that make the text's keys and values, which are masked",
    )
    phrase: str = Field(description="The fixed instance prompt")
    context: Context = Field(default="delta", description="Default context at generation")
    is_style: bool = False
    settings: dict[str, Any] = Field(default_factory=dict, description="Training settings")
    examples: tuple[str, ...] = ()
    method: str = Field(default="", description="LoHa, DoRA, ...: what it is if no plain LoRA; it acts as a whole")
    source: str = Field(default="tara", description="The key style of the file that it was first read from")
    tara_version: str = Field(default_factory=tara_version)

    @property
    def scale(self) -> float:
        """The factor of most layers' deltas, alpha / rank."""
        return self.alpha / self.rank

    def rank_of(self, layer: str) -> int:
        """One layer's rank."""
        return self.rank_pattern.get(layer, self.rank)

    def alpha_of(self, layer: str) -> float:
        """One layer's alpha."""
        return self.alpha_pattern.get(layer, self.alpha)

    def with_scales(self, ranks: Mapping[str, int], alphas: Mapping[str, float]) -> "AdapterCard":
        """The card of an adapter whose layers have these ranks and alphas."""
        (rank, rank_pattern), (alpha, alpha_pattern) = commonest_and_rest(ranks), commonest_and_rest(alphas)
        return self.model_copy(
            update={"rank": rank, "alpha": alpha, "rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern}
        )


def parse_card(path: Path, text: str) -> AdapterCard:
    """Parse the card in a file's header.

    Raises:
        TaraError: when it is damaged, or newer than this version of tara.
    """
    _check_version(path, text)  # checked first, because a newer card may have entries that are invalid in this version
    try:
        return AdapterCard.model_validate_json(text)
    except ValidationError as failure:
        fault = failure.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise TaraError(
            f"'{path}' has a damaged adapter card ({where}: {fault['msg']}). Train the adapter again."
        ) from failure


def _check_version(path: Path, text: str) -> None:
    try:
        version = _Version.model_validate_json(text).format_version
    except ValidationError:
        return  # damaged, for which the reader of the whole card has a better message
    if version > FORMAT_VERSION:
        raise TaraError(
            f"'{path}' has format version {version}, but this version of tara reads up to {FORMAT_VERSION}. Update "
            "tara."
        )


class _Version(BaseModel):
    format_version: int = FORMAT_VERSION


def commonest_and_rest(numbers: Mapping[str, Number]) -> tuple[Number, dict[str, Number]]:
    """The most common number, and the numbers of the layers that differ from it, sorted by path."""
    counted = Counter(numbers.values())
    # of two equally common numbers the smaller, so that the order of the layers does not matter
    commonest = min(counted, key=lambda number: (-counted[number], number))
    return commonest, {layer: other for layer, other in sorted(numbers.items()) if other != commonest}
