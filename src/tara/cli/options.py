"""Flags from settings: a model's fields, with their descriptions, become a command's options."""

import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from cyclopts import Group, Parameter
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Typed = Annotated[str, Parameter(parse=False)]
"""The command as it was typed, for pages that end with it; :mod:`tara.cli` hands it to commands that ask for it."""


def with_flags(
    command: Callable[..., None], flags: Mapping[type[BaseModel], Mapping[str, str | None]], titles: Sequence[str]
) -> Callable[..., None]:
    """Give a command, in place of its ``**values``, one option per field of the models.

    Args:
        command: a function whose last parameter is ``**values``; it receives every given flag by its field's name.
        flags: the models, each with the flags that are not called as their field is (field -> flag); None leaves a
            field out.
        titles: heading over each model's flags in the help.
    """
    signature = inspect.signature(command)
    parameters = [p for p in signature.parameters.values() if p.class_word is not p.VAR_KEYWORD]
    for order, ((model, renamed), title) in enumerate(zip(flags.items(), titles, strict=True)):
        group = Group(title, sort_key=order)
        for name, field in model.model_fields.items():
            flag = renamed.get(name, name.replace("_", "-"))
            if flag is not None:
                parameters.append(_parameter(flag.replace("-", "_"), flag, field, group))
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def given(model: type[BaseModel], values: Mapping[str, Any], renamed: Mapping[str, str | None]) -> dict[str, Any]:
    """The flags of one model that stood on the command line, by field name."""
    flags = {name: renamed.get(name, name) for name in model.model_fields}
    found = {name: values.get(flag.replace("-", "_")) for name, flag in flags.items() if flag is not None}
    return {name: value for name, value in found.items() if value is not None}


def _parameter(name: str, flag: str, field: FieldInfo, group: Group) -> inspect.Parameter:
    description = field.description or ""
    if not field.is_required() and field.default is not None and field.annotation is not bool:
        description += f" [default: {field.default}]"
    if field.annotation is bool:
        description += f" [default: {flag if field.default else 'no-' + flag}]"
    members = _members(field.annotation)
    option = Parameter(
        name=f"--{flag}",
        help=description,
        group=group,
        show_default=False,
        negative_iterable=(),
        converter=whole_number if int in members else _number if float in members else None,
    )
    annotation = Annotated[field.annotation | None, option]  # type: ignore[operator]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _members(annotation: Any) -> Sequence[Any]:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def whole_number(_: Any, tokens: Sequence[Any]) -> int:
    """Read a whole number, for :class:`cyclopts.Parameter`."""
    text = str(tokens[0].value)
    try:
        return int(text)  # a parser that takes 4.5 steps for 4 would hide a mistake
    except ValueError:
        raise ValueError(f"'{text}' is not a whole number.") from None


def _number(_: Any, tokens: Sequence[Any]) -> float:
    text = str(tokens[0].value)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"'{text}' is not a number.")
    return number
