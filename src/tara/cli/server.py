"""`tara server`: images, jobs and adapters over HTTP; `tara server key add NAME` makes an API key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from tara.cli.options import of_model, with_options
from tara.cli.terminal import only_our_bars, say
from tara.errors import TaraError, installation
from tara.server.settings import ServerSettings, read_settings


@with_options({ServerSettings: "Server"})
def server(
    *words: Annotated[str, Parameter(help="key add NAME: create an API key and print it, without serving")],
    config: Annotated[Path | None, Parameter(help="TOML file of settings, as --print-config writes it")] = None,
    print_config: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Print the settings as TOML and exit")
    ] = False,
    device: Annotated[str | None, Parameter(help="cuda, mps or cpu [default: the best one found]")] = None,
    **values: Any,
) -> None:
    """Serve images of many adapters from one base over HTTP, as OpenAI's API and as jobs.

    tara server --base sd15

    tara server key add NAME
    """
    given = of_model(ServerSettings, values)
    if words:  # a key is made without a base
        given = {"base": ""} | given
    settings = read_settings(config, **given)
    if print_config:
        say(_toml(settings))
        return
    try:
        from tara.server.app import create_app
        from tara.server.process import serve
        from tara.server.store import Store
    except ImportError as missing:
        raise TaraError(f"The server needs {missing.name}. Install it: {installation('server')}.") from missing
    from tara.storage.files import writable_folder

    writable_folder(settings.data)
    store = Store(settings.database_url)
    if words:
        _key(words, store)
        return
    from tara.families.base_names import public_name
    from tara.families.loading import load_base
    from tara.storage.lock import folder_lock

    _check_port(settings)
    only_our_bars()
    with folder_lock(settings.data):
        app = create_app(load_base(settings.base, device=device), public_name(settings.base), settings, store)
        say(f"Serving {settings.base} on http://{settings.host}:{settings.port}, its API on /docs.")
        serve(app, settings)


def _key(words: tuple[str, ...], store: Any) -> None:
    if len(words) != 3 or words[:2] != ("key", "add"):
        raise TaraError(f"There is no `tara server {' '.join(words)}`. Write `tara server key add NAME`.")
    say(store.add_key(words[2]))


def _check_port(settings: ServerSettings) -> None:
    """Refuse a port that is taken, before the base is loaded."""
    import socket

    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((settings.host, settings.port))
        except OSError as failure:
            raise TaraError(
                f"{settings.host}:{settings.port} is not available ({failure.strerror}). Choose another --port."
            ) from failure


def _toml(settings: ServerSettings) -> str:
    import json

    values = settings.model_dump(mode="json", exclude_none=True)
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())
