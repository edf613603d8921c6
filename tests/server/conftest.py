"""A server of a tiny base, and adapter files for it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

import tiny_adapters
import tiny_bases
from tara.families.base import Base
from tara.server.app import create_app
from tara.server.settings import ServerSettings
from tara.server.store import Store

BASE = Base(tiny_bases.sd_pipeline())


@pytest.fixture(scope="session")
def rex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the tiny base for `a xlo dog`."""
    return tiny_adapters.random_adapter(BASE).save(tmp_path_factory.mktemp("adapters") / "rex.safetensors")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "data").mkdir()
    store = Store(f"sqlite:///{tmp_path / 'data' / 'tara.db'}")
    yield store
    store.close()


@pytest.fixture
def serve(tmp_path: Path, store: Store) -> Iterator[Callable[..., TestClient]]:
    """Starts a server with the given settings; the client names this computer."""
    clients: list[TestClient] = []

    def start(**settings: Any) -> TestClient:
        values = {"base": "tiny", "data": tmp_path / "data", "drain_seconds": 20, **settings}
        app = create_app(BASE, "tiny", ServerSettings(**values), store)
        client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
        clients.append(client.__enter__())
        return client

    yield start
    for client in clients:
        if client.portal is not None:  # it has not been stopped by the test
            client.__exit__(None, None, None)
