"""Builds a settings model from user values; an invalid value gives a one-sentence error."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from tara.errors import TaraError, nearest

Model = TypeVar("Model", bound=BaseModel)
Function = TypeVar("Function", bound=Callable[..., Any])


def build(model: type[Model], values: Mapping[str, Any], where: str = "") -> Model:
    """Build settings from plain values; a TaraError with one sentence says which value is wrong.

    Raises:
        TaraError: for an unknown name (with the nearest known one) or a value out of range.
    """
    try:
        name = next((str(name) for name, value in values.items() if _has_null(value)), "")
    except RecursionError:
        raise TaraError(f"{where}values are nested too deeply. Every setting is one value or a list.") from None
    if name:
        raise TaraError(f"{where}{name} contains a null character. Remove it.")
    try:
        return model.model_validate(values)
    except ValidationError as refused:
        raise TaraError(_sentence(model, refused, where)) from None


def takes(*models: type[BaseModel], only: Collection[str] = ()) -> Callable[[Function], Function]:
    """Give a function with ``**settings`` a signature with the models' fields, for `help` and editors.

    ``only`` names some fields; all of them when it is empty.
    """

    def with_signature(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        fields = {name: field for model in models for name, field in model.model_fields.items()}
        names = [name for name in only or fields if name not in signature.parameters]
        keywords = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if fields[name].is_required() else fields[name].default,
                annotation=fields[name].annotation,
            )
            for name in names
        ]
        function.__signature__ = signature.replace(parameters=[*own, *keywords])  # type: ignore[attr-defined]
        return function

    return with_signature


def _has_null(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_null, cast(Mapping[object, object], value).values()))
    if isinstance(value, list | tuple):
        return any(map(_has_null, cast(Sequence[object], value)))
    return isinstance(value, str | Path) and "\0" in str(value)


def _sentence(model: type[BaseModel], refused: ValidationError, where: str) -> str:
    # unknown names first: one may be a misspelling of a missing name
    fault = min(refused.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known: Sequence[str] = list(model.model_fields)
        return f"{where}there is no setting '{name}'.{nearest(name, known)} Known: {', '.join(known)}."
    if fault["type"] == "missing":
        field = model.model_fields.get(name)  # None inside a nested model
        return f"{where}'{name}' is missing{f': {field.description}' if field else ''}."
    reason = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{where}{name + ' ' if name else ''}{reason}."
    return f"{where}{name} = {fault['input']!r} is refused: {reason[0].lower()}{reason[1:]}. Choose another value."
