"""Requests that nobody meant: every answer is below 500, and comes."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from fastapi.testclient import TestClient

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


@pytest.mark.parametrize("count", [200, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])])
@pytest.mark.filterwarnings("ignore")
def test_no_mutated_request_is_a_500_or_hangs(serve: Callable[..., TestClient], rex: Path, count: int) -> None:
    client = serve(max_requests_per_minute=10**6, max_queued_jobs_per_key=4, max_steps=2, max_side=64)
    client.post("/v1/adapters", params={"name": "rex"}, files={"file": ("rex", rex.read_bytes())})
    chance, memory = random.Random(0), list[int]()
    for number in range(count):
        method = chance.choice(("POST", "POST", "POST", "GET", "DELETE", "PUT"))
        route = "jobs" if chance.random() < 0.7 else chance.choice(PATHS)
        if (method, route) == ("DELETE", "adapters/rex"):
            continue
        content = _mutated(chance)
        started = time.monotonic()
        answer = client.request(method, f"/v1/{route}", content=content, headers={"content-type": "application/json"})
        assert time.monotonic() - started < 60, (method, route, content)  # a busy machine is no failure
        assert answer.status_code < 500, (method, route, content)
        if answer.status_code >= 400:
            assert answer.json()["error"]["message"], (method, route, content)
        if answer.status_code == 202:
            client.delete(f"/v1/jobs/{answer.json()['id']}")
        if number in (count // 4, count - 1):
            memory.append(psutil.Process().memory_info().rss)
    assert client.get("/readyz").status_code == 200
    assert memory[-1] - memory[0] < 64 * 2**20
