"""Errors and warnings for users."""

import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "tara-diffusion"
"""What `pip` calls this package; on PyPI, ``tara`` is somebody else's."""


def installation(extra: str) -> str:
    """The command that installs an optional dependency."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def tara_version() -> str:
    """The installed version of this package."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0"


class TaraError(Exception):
    """A user's mistake; the message says what is wrong, where, and what to do, in one or two sentences."""


class TaraWarning(UserWarning):
    """Something that works but is probably not intended."""


def warn(message: str) -> None:
    """Warn (TaraWarning) on behalf of the function that calls this one."""
    warnings.warn(message, TaraWarning, stacklevel=3)


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` with a leading space when a ``known`` name is close to ``name``, else nothing."""
    close = get_close_matches(name, list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def first_line(failure: BaseException) -> str:
    """The first line of another library's message, or the failure's type when it has none."""
    return next(iter(str(failure).strip().splitlines()), type(failure).__name__)
