"""What a flag of the published scripts comes to here, and how a value of it is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from tara.errors import TaraError

Origin = Literal["published", "diffusers", "tara"]
"""Who else has the flag: the published scripts, diffusers' DreamBooth-LoRA scripts, or nobody."""

Kind = Literal["text", "switch", "whole", "number"]
TYPES: dict[Kind, Any] = {"text": str, "switch": bool, "whole": int, "number": float}


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One row of a script's table.

    Attributes:
        name: without its dashes.
        about: what it sets; for the other states, why it does nothing here, or why not and what instead.
        state: ``works``, ``accepted`` without effect, or ``refused``.
        same: values of an accepted or refused flag that ask for what happens here anyway: they pass without a word.
            An accepted flag that has such values is refused with any other.
        kind: what a value must be, where no setting says it.
        setting: the field of the package's settings that the value goes to, which also says what it may be.
        default: the value of a flag that is left out or empty.
        needed: whether the script cannot do without it.
    """

    name: str
    about: str
    state: Literal["works", "accepted", "refused"] = "works"
    same: tuple[str, ...] = ()
    kind: Kind = "text"
    setting: str = ""
    default: str = ""
    needed: bool = False
    origin: Origin = "published"

    @property
    def is_switch(self) -> bool:
        """Whether it may stand alone for ``true``."""
        return self.kind == "switch"

    @property
    def verdict(self) -> str:
        """The state in words, with the values that it holds for."""
        values = " or ".join(self.same)
        if self.state == "accepted" and values:
            return f"accepted if {values}"
        return f"refused unless {values}" if self.state == "refused" and values else self.state

    def refuses(self, value: str) -> bool:
        """Whether a value is one that tara will not take."""
        if self.state == "works" or value.lower() in self.same or _equal_number(value, self.same):
            return False
        return self.state == "refused" or bool(self.same)

    def read(self, text: str, field: FieldInfo | None = None) -> Any:
        """A value from the command line, as the setting's field (or the flag's own kind) asks for it.

        Raises:
            TaraError: naming the flag, when it cannot be that.
        """
        wanted: Any = TYPES[self.kind] if field is None else Annotated[field.annotation, field]
        try:
            return TypeAdapter(wanted).validate_python(text)
        except ValidationError as refused:
            reason = refused.errors()[0]["msg"].removeprefix("Value error, ")
            raise TaraError(
                f"--{self.name} = '{text}' is refused: {reason[0].lower()}{reason[1:]}. Choose another value."
            ) from None


def accepted(name: str, why: str, *same: str, kind: Kind = "text", origin: Origin = "diffusers") -> Flag:
    """A flag that changes nothing here."""
    return Flag(name=name, about=why, state="accepted", same=same, kind=kind, origin=origin)


def refused(name: str, why: str, *same: str, kind: Kind = "text", origin: Origin = "diffusers") -> Flag:
    """A flag that asks for something else than what happens here."""
    return Flag(name=name, about=why, state="refused", same=same, kind=kind, origin=origin)


def switch(name: str, about: str, setting: str = "", origin: Origin = "published") -> Flag:
    """A flag that is off unless it is given."""
    return Flag(name=name, about=about, kind="switch", setting=setting, default="false", origin=origin)


def _equal_number(value: str, same: Sequence[str]) -> bool:
    try:
        return any(float(value) == float(other) for other in same)
    except ValueError:
        return False
