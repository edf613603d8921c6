"""Options of commands, made from the fields of settings models and their descriptions."""

import functools
import inspect
import math
import operator
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from cyclopts import Group, Parameter
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tara.cli.examples import EXAMPLES
from tara.errors import TaraError
from tara.storage.validation import build

Settings = TypeVar("Settings", bound=BaseModel)
CommandLine = Annotated[str, Parameter(parse=False)]
"""The command as it was typed, for pages that end with it; `tara.cli` hands it to commands that ask for it."""

Overwrite = Annotated[
    bool, Parameter(negative=(), show_default=False, help="Replace the output if it exists with other settings")
]

# fmt: off
RARELY_NEEDED = frozenset((
    "revision", "variant", "vae", "prediction_type", "name", "caption_templates", "example_prompts", "alignment_weight",
    "freeze_down", "weight_decay", "max_grad_norm", "prior_loss_weight", "class_prompt", "crops", "background_weight",
    "report_to", "project", "threads", "context", "clip_skip", "compile", "attention_slicing", "plain_dino",
    "confidence", "same_subject", "lr_warmup_steps", "snr_gamma", "preview_images", "hub_model_id", "allowed_hosts",
    "rows", "max_queued_jobs", "max_queued_jobs_per_key", "max_requests_per_minute", "max_images_kept_per_key",
    "max_upload_mib", "max_adapter_mib_per_key", "max_body_kib", "max_steps", "max_side", "drain_seconds",
    "shuffle_tags", "keep_tags", "caption_dropout", "noise_offset",
))
# fmt: on
"""Settings that a help shows in its last group."""


def require(command: str, values: Mapping[str, Any], *names: str) -> None:
    """Refuse (TaraError) a command line that lacks options, all of them at once, with an example."""
    missing = [f"--{name.replace('_', '-')}" for name in names if not values.get(name)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        demo = " (To try tara without a base: `tara demo`.)" if "--base" in missing else ""
        raise TaraError(f"{', '.join(missing)} {verb} missing. For example: {EXAMPLES[command][0]}{demo}")


def with_options(
    models: Mapping[type[BaseModel], str], without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, in place of its ``**values``, one option per field of settings models.

    The command receives the options that are given, by the names of their fields; `of_model` picks those of one model.

    Args:
        models: the models, each with the heading over its options in the help.
        without: fields that are no options of this command.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        parameters = [
            parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD
        ]
        for order, (model, title) in enumerate(models.items()):
            group, rare = Group(title, sort_key=order), Group("Rarely needed", sort_key=len(models))
            for name, field in model.model_fields.items():
                if name not in without:
                    parameters.append(_option(name, field, rare if name in RARELY_NEEDED else group))
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def of_model(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are fields of a model."""
    return {name: values[name] for name in model.model_fields if name in values}


def settings_from(model: type[Settings], values: Mapping[str, Any]) -> Settings:
    """A model's settings from the values that are its fields; a wrong one is a TaraError."""
    return build(model, of_model(model, values))


def _option(name: str, field: FieldInfo, group: Group) -> inspect.Parameter:
    union = typing.get_args(field.annotation) if field.default is None else (field.annotation,)
    # without objects that only Python can give
    types = [member for member in union if typing.get_origin(member) is not Annotated]
    default = None if field.is_required() else field.default
    is_shown = default is not None and "[default" not in (field.description or "")
    extra = field.json_schema_extra
    word = str(extra["word"]) if isinstance(extra, dict) and "word" in extra else ""
    types += [str] if word else []
    whole = functools.partial(_whole_number_or, word) if word else whole_number
    option = Parameter(
        name=f"--{name.replace('_', '-')}",
        help=field.description,
        group=group,
        show_default=_shown if is_shown else False,
        negative_iterable=(),
        converter=whole if int in types else _number if float in types else None,
    )
    annotation = Annotated[functools.reduce(operator.or_, types) | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _shown(default: Any) -> str:
    return ("off", "on")[default] if isinstance(default, bool) else str(default)


def whole_number(_: Any, tokens: Sequence[Any]) -> int:
    """Read a whole number, for `cyclopts.Parameter`."""
    text = str(tokens[0].value)
    try:
        return int(text)  # a parser that takes 4.5 steps for 4 would hide a mistake
    except ValueError:
        raise ValueError(f"'{text}' is not a whole number.") from None


def _whole_number_or(word: str, _: Any, tokens: Sequence[Any]) -> int | str:
    text = str(tokens[0].value)
    try:
        return word if text == word else whole_number(_, tokens)
    except ValueError:
        raise ValueError(f"'{text}' is neither a whole number nor {word}.") from None


def _number(_: Any, tokens: Sequence[Any]) -> float:
    text = str(tokens[0].value)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"'{text}' is not a number.")
    return number
