"""A published script: its table of flags, its help page, and its command line read by that table."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import BaseModel

from tara.cli.published.flag import Flag
from tara.errors import TaraError, nearest

HEADINGS = {"works": "flags", "accepted": "accepted without effect", "refused": "refused"}


@dataclass(frozen=True, kw_only=True)
class Script:
    """One of the files at the repository's root; ``work`` does what the given flags ask for."""

    file: str
    about: str
    flags: tuple[Flag, ...]
    work: Callable[["Given"], None]

    def flag(self, name: str) -> Flag:
        """The row of a flag that the table has."""
        return next(flag for flag in self.flags if flag.name == name)

    def help(self) -> str:
        """What ``--help`` prints."""
        return _parser(self).format_help()


@dataclass(frozen=True)
class Given:
    """A command line, read: the text of every flag that was given and is not empty."""

    script: Script
    texts: Mapping[str, str]

    def __contains__(self, name: str) -> bool:
        return name in self.texts

    def text(self, name: str) -> str:
        """A flag's text, or its default."""
        return self.texts.get(name, self.script.flag(name).default)

    def value(self, name: str) -> Any:
        """A flag's value of the kind that its row names."""
        return self.script.flag(name).read(self.text(name))

    def settings(self, model: type[BaseModel]) -> dict[str, Any]:
        """The values of all flags that go to a field of these settings, by field.

        Raises:
            TaraError: for a value that the field does not take, naming the flag.
        """
        found: dict[str, Any] = {}
        for flag in self.script.flags:
            field, text = model.model_fields.get(flag.setting), self.text(flag.name)
            if field is not None and text:
                found[flag.setting] = flag.read(text, field)
        return found

    @property
    def without_effect(self) -> list[str]:
        """The given flags that change nothing, and whose value does not ask for what happens anyway."""
        named = [flag for flag in self.script.flags if flag.name in self.texts and flag.state == "accepted"]
        return [f"--{flag.name} ({flag.about})" for flag in named if not flag.same]


def read_flags(script: Script, tokens: Sequence[str]) -> Given:
    """Read a command line.

    Raises:
        TaraError: for a flag that is unknown (with the nearest known one), refused, missing or lacks its value.
    """
    found, left = _parser(script).parse_known_args(_without_backslashes(tokens))
    if left:
        raise _unknown(script, left)
    # an empty value, as of an unset shell variable, is none
    texts: dict[str, str] = {name: text for name, text in vars(found).items() if text}
    for flag in script.flags:
        if flag.needed and flag.name not in texts:
            raise TaraError(f"--{flag.name} is missing. Give it: {flag.about}.")
        if flag.name in texts and flag.refuses(texts[flag.name]):
            only = f" Only {' or '.join(flag.same)} can be given." if flag.state == "accepted" else ""
            raise TaraError(f"--{flag.name} {texts[flag.name]} is refused: {flag.about}.{only}")
    return Given(script, texts)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise TaraError(f"{message.removeprefix('argument ')}. See `python {self.prog} --help`.")


def _parser(script: Script) -> argparse.ArgumentParser:
    usage = f"python {script.file} --flag value --switch ..."  # argparse's own would fill a page
    parser = _Parser(prog=script.file, usage=usage, description=script.about, allow_abbrev=False, add_help=False)
    for state, heading in HEADINGS.items():
        rows = [flag for flag in script.flags if flag.state == state]
        group = parser.add_argument_group(heading) if rows else parser
        for flag in rows:
            more = f" [default: {flag.default}]" if flag.default and flag.default != "false" else ""
            more = " [needed]" if flag.needed else more
            group.add_argument(
                f"--{flag.name}",
                nargs="?" if flag.is_switch else None,
                const="true" if flag.is_switch else None,
                metavar="true" if flag.is_switch else flag.name.rpartition("_")[2].upper(),
                help=f"{flag.about}{more}".replace("%", "%%"),
            )
    return parser


def _without_backslashes(tokens: Sequence[str]) -> list[str]:
    """The tokens without what a backslash before the end of the command leaves behind."""
    kept = list(tokens)
    while kept and (kept[-1].isspace() or kept[-1].strip() == "\\"):
        kept.pop()
    return kept


def _unknown(script: Script, left: Sequence[str]) -> TaraError:
    name = next((token for token in left if token.startswith("-")), None)
    if name is None:
        return TaraError(f"There is no place for '{left[0]}'. Put quotes around a value that has spaces in it.")
    name = name.partition("=")[0]
    known = nearest(name, [f"--{flag.name}" for flag in script.flags])
    return TaraError(f"{script.file} has no flag {name}.{known} See `python {script.file} --help`.")
