"""Flags from settings: a model's fields, with their descriptions, become a command's options."""

import functools
import inspect
import math
import operator
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any

from cyclopts import Group, Parameter
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Typed = Annotated[str, Parameter(parse=False)]
"""The command as it was typed, for pages that end with it; `tara.cli` hands it to commands that ask for it."""

Overwrite = Annotated[bool, Parameter(negative=(), help="Replace the output if it exists with other settings")]


def with_flags(
    command: Callable[..., None], models: Mapping[type[BaseModel], str], without: Collection[str] = ()
) -> Callable[..., None]:
    """Give a command, in place of its ``**values``, one option per field of settings models.

    Args:
        command: a function whose last parameter is ``**values``; it receives every given flag by its parameter's name.
        models: the models, each with the heading over its flags in the help.
        without: fields that are no flags of this command.
    """
    signature = inspect.signature(command)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    for order, (model, title) in enumerate(models.items()):
        group = Group(title, sort_key=order)
        for name, field in model.model_fields.items():
            if name not in without:
                parameters.append(_parameter(name, field, group))
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def given(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of one model that stood on the command line, by field name."""
    return {name: values[name] for name in model.model_fields if values.get(name) is not None}


def _parameter(name: str, field: FieldInfo, group: Group) -> inspect.Parameter:
    flag, description = name.replace("_", "-"), field.description or ""
    members = [one for one in _members(field.annotation) if typing.get_origin(one) is not Annotated]
    annotation: Any = functools.reduce(operator.or_, members)  # without the objects that only Python can give
    if "[default" not in description and not field.is_required() and field.default is not None:
        default = f"{'' if field.default else 'no-'}{flag}" if field.annotation is bool else field.default
        description += f" [default: {default}]"
    option = Parameter(
        name=f"--{flag}",
        help=description,
        group=group,
        show_default=False,
        negative_iterable=(),
        converter=whole_number if int in members else _number if float in members else None,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation | None, option]
    )


def _members(annotation: Any) -> Sequence[Any]:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def whole_number(_: Any, tokens: Sequence[Any]) -> int:
    """Read a whole number, for `cyclopts.Parameter`."""
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
