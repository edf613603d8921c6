"""`tara server` as a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from server_requests import Serve, ask, finished
from tara.server.store import Store

Start = Callable[..., tuple[subprocess.Popen[bytes], httpx.Client]]


@pytest.fixture
def start(tmp_path: Path, base: Path) -> Iterator[Start]:
    """Starts a server of the tiny base and waits until it is ready; the process and a client of it."""
    ends: list[Callable[[], object]] = []

    def run(*flags: Any) -> tuple[subprocess.Popen[bytes], httpx.Client]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = ["--base", base, "--data", tmp_path / "data", "--port", port, "--device", "cpu", *flags]
        command = [sys.executable, "-m", "tara", "server", *map(str, words)]
        process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        ends.extend((client.close, process.kill, process.wait))
        for _ in range(1200):
            try:
                if client.get("/readyz").status_code == 200:
                    return process, client
            except httpx.TransportError:
                assert process.poll() is None
                time.sleep(0.1)
        raise AssertionError("the server is not ready")

    yield run
    for end in ends:
        end()


def test_sigterm_ends_what_is_in_flight_and_leaves_the_rest_to_the_next_process(
    start: Start, serve: Serve, store: Store
) -> None:
    process, client = start("--rows", 2, "--max-steps", 1000)
    running = client.post("/v1/jobs", json=ask(adapters=[], steps=150)).json()["id"]
    waiting = [client.post("/v1/jobs", json=ask(adapters=[])).json()["id"] for _ in range(3)]
    with ThreadPoolExecutor(1) as threads, client.stream("GET", f"/v1/jobs/{waiting[0]}/events") as events:
        lines = events.iter_lines()
        assert '"status":"queued"' in next(lines)
        image = threads.submit(client.post, "/v1/images/generations", json=ask(adapters=[]))
        while store.count_unfinished() < 5 or client.get(f"/v1/jobs/{running}").json()["step"] < 1:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        refused = image.result(60)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "busy")
        assert refused.headers["retry-after"]
        assert list(lines) == [""]  # nothing more comes, and the stream ends
    assert process.wait(120) == 0
    assert [record.status for job in (running, *waiting) if (record := store.job("local", job))] == [
        "done",
        *["queued"] * 3,
    ]
    again = serve()
    assert [finished(again, job)["status"] for job in waiting] == ["done"] * 3
    assert again.get(f"/v1/images/{running}/0").status_code == 200
