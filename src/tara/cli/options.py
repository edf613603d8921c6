"""Options of commands, made from the fields of settings models and their descriptions."""

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

from tara.cli.examples import EXAMPLES
from tara.errors import TaraError

Typed = Annotated[str, Parameter(parse=False)]
"""The command as it was typed, for pages that end with it; `tara.cli` hands it to commands that ask for it."""

Overwrite = Annotated[
    bool, Parameter(negative=(), show_default=False, help="Replace the output if it exists with other settings")
]

# fmt: off
RARE = frozenset((
    "revision", "variant", "vae", "prediction_type", "name", "caption_templates", "example_prompts", "alignment_weight",
    "freeze_down", "weight_decay", "max_grad_norm", "prior_loss_weight", "class_prompt", "crops", "background_weight",
    "report_to", "project", "threads", "context", "clip_skip", "compile", "attention_slicing", "plain_dino",
    "confidence", "same_subject", "lr_warmup_steps", "snr_gamma", "preview_images", "hub_model_id",
))
# fmt: on
"""Settings that stand in a group of their own at the end of a help."""


def require(command: str, values: Mapping[str, Any], *names: str) -> None:
    """Refuse (TaraError) a command line that lacks options, all of them at once, with an example."""
    missing = [f"--{name.replace('_', '-')}" for name in names if not values.get(name)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        demo = " (To try tara without a base: `tara demo`.)" if "--base" in missing else ""
        raise TaraError(f"{', '.join(missing)} {verb} missing. For example: {EXAMPLES[command][0]}{demo}")


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
        group, rare = Group(title, sort_key=order), Group("Rarely needed", sort_key=len(models))
        for name, field in model.model_fields.items():
            if name not in without:
                parameters.append(_parameter(name, field, rare if name in RARE else group))
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
        default = ("off", "on")[field.default] if field.annotation is bool else field.default
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
