"""Requests that nobody meant: every answer is below 500, and comes."""

import itertools
import json
import random
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import pytest
from fastapi.testclient import TestClient

from server_requests import Serve

VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**63,
    2**70,
    1e308,
    float("nan"),
    float("-inf"),
    "",
    "a xlo dog",
    "\0",
    "\ud800",
    "é" * 500,
    "../../etc/passwd",
    "https://example.org/a.safetensors",
    "64x64",
    "auto",
    "rex",
    "a\u202eb",
    [],
    {},
    [[[[]]]],
    {"name": "rex"},
    [{"name": "rex"}],
    [{"name": "rex", "weight": 1e300}],
    [{"name": "rex"}, {"name": "rex"}],
]
FIELDS = ["prompt", "model", "n", "size", "response_format", "adapters", "seed", "negative_prompt", "steps", "user"]
HANG_SECONDS, TRIES = 5, 3
PATHS = ["jobs", "images/generations", "adapters", "models", "jobs/x", "images/x/0", "adapters/rex", "adapters/%00"]


def _mutated(chance: random.Random) -> bytes:
    """A request body: a good one with some fields replaced, and sometimes some bytes."""
    body: dict[str, Any] = {"prompt": "a xlo dog", "steps": 1, "adapters": [{"name": "rex"}]}
    for _ in range(chance.randrange(4)):
        body[chance.choice(FIELDS)] = chance.choice(VALUES)
    text = bytearray(json.dumps(body).encode())
    for _ in range(chance.choice((0, 0, 0, 1, 3))):
        text[chance.randrange(len(text))] = chance.randrange(256)
    return bytes(text)


def _in_time(client: TestClient, method: str, route: str, content: bytes) -> Any:
    """The answer to a request that does not hang: a busy machine is slow once, a request that hangs each time."""
    for _ in range(TRIES):
        started = monotonic()
        answer = client.request(method, route, content=content, headers={"content-type": "application/json"})
        if monotonic() - started < HANG_SECONDS:
            return answer
    raise AssertionError(f"{method} {route} takes more than {HANG_SECONDS} s: {content!r}")


def test_a_request_that_hangs_is_noticed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client, clock = serve(), itertools.count(0, HANG_SECONDS)
    monkeypatch.setattr("test_mutated_requests.monotonic", lambda: next(clock))
    with pytest.raises(AssertionError, match="GET /v1/models takes more than 5 s"):
        _in_time(client, "GET", "/v1/models", b"")


@pytest.mark.parametrize("count", [200, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])])
@pytest.mark.filterwarnings("ignore")
def test_no_mutated_request_is_a_500_or_hangs(serve: Serve, rex: Path, count: int) -> None:
    client = serve(max_requests_per_minute=10**6, max_queued_jobs_per_key=4, max_steps=2, max_side=64)
    client.post("/v1/adapters", params={"name": "rex"}, files={"file": ("rex", rex.read_bytes())})
    chance, memory = random.Random(0), list[int]()
    for number in range(count):
        method = chance.choice(("POST", "POST", "POST", "GET", "DELETE", "PUT"))
        route = "jobs" if chance.random() < 0.7 else chance.choice(PATHS)
        if (method, route) == ("DELETE", "adapters/rex"):
            continue
        content = _mutated(chance)
        answer = _in_time(client, method, f"/v1/{route}", content)
        assert answer.status_code < 500, (method, route, content)
        if answer.status_code >= 400:
            assert answer.json()["error"]["message"], (method, route, content)
        if answer.status_code == 202:
            client.delete(f"/v1/jobs/{answer.json()['id']}")
        if number in (count // 4, count - 1):
            memory.append(psutil.Process().memory_info().rss)
    assert client.get("/readyz").status_code == 200
    assert memory[-1] - memory[0] < 64 * 2**20
