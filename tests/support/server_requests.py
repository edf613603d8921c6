"""Requests to a server that several of its tests send."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from tara.server.store import Store

PROMPT = "a xlo dog on the beach"
Serve = Callable[..., TestClient]


def upload(client: Any, file: Path, name: str = "rex", **options: Any) -> Any:
    """Upload an adapter; the file's own name is a path that must be nowhere."""
    content = {"file": ("../../etc/passwd", file.read_bytes())}
    return client.post("/v1/adapters", params={"name": name}, files=content, **options)


def ask(**changes: Any) -> dict[str, Any]:
    """The body of a request for one image with the adapter rex."""
    return {"prompt": PROMPT, "adapters": [{"name": "rex"}], "steps": 2, "seed": 3} | changes


def finished(client: Any, job: str, **options: Any) -> dict[str, Any]:
    """A job when it has its end."""
    answer: dict[str, Any] = {}
    for _ in range(600):
        answer = client.get(f"/v1/jobs/{job}", **options).json()
        if answer["status"] not in ("queued", "running"):
            return answer
        time.sleep(0.05)
    raise AssertionError(answer)


def key(store: Store, name: str) -> dict[str, Any]:
    """The options of a request with a new API key."""
    return {"headers": {"Authorization": f"Bearer {store.add_key(name)}"}}
