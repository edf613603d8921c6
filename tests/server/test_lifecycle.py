"""The ends of jobs and of the server: cancelled, stopped, started again."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from server_requests import Serve, ask, finished
from tara.inference import engine
from tara.inference.denoising import Denoising
from tara.inference.shared_calls import SharedCalls
from tara.server.jobs import Jobs
from tara.server.store import Store

FIRST_STEP = [(engine, "prompt_rows"), (SharedCalls, "predict"), (Denoising, "advance")]
"""What the engine calls for a job's first step, in this order."""


class Held:
    """A method of the engine whose first call in the engine's thread waits; real threads meet there, without sleeps."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        original: Callable[..., Any] = getattr(owner, name)

        def held(*arguments: Any) -> Any:
            self.reached.set()
            assert self.go_on.wait(60)
            return original(*arguments)

        patch.setattr(owner, name, held)


@pytest.mark.parametrize(("owner", "name"), FIRST_STEP)
@pytest.mark.parametrize("images", [1, 2])
def test_a_job_cancelled_while_its_first_step_starts_stays_cancelled(
    serve: Serve, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, owner: Any, name: str, images: int
) -> None:
    client, held = serve(), Held(monkeypatch, owner, name)
    job = client.post("/v1/jobs", json=ask(adapters=[], steps=1, n=images)).json()["id"]
    assert held.reached.wait(60)
    assert client.delete(f"/v1/jobs/{job}").json()["status"] == "cancelled"
    held.go_on.set()
    after = client.post("/v1/jobs", json=ask(adapters=[], steps=1)).json()["id"]
    assert finished(client, after)["status"] == "done"
    client.__exit__(None, None, None)
    ended = store.job("local", job)
    assert ended is not None
    assert (ended.status, ended.error) == ("cancelled", "")
    assert [path.name for path in (tmp_path / "data" / "images").iterdir()] == [f"{after}-0.png"]


@pytest.mark.parametrize("images", [1, 2])
def test_a_job_whose_first_step_starts_when_the_server_stops_is_the_next_servers(
    serve: Serve, store: Store, monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    client = serve()
    with monkeypatch.context() as patch:
        held, drain = Held(patch, *FIRST_STEP[0]), Jobs.drain

        def drain_and_go_on(jobs: Jobs) -> None:
            drain(jobs)
            held.go_on.set()

        patch.setattr(Jobs, "drain", drain_and_go_on)
        job = client.post("/v1/jobs", json=ask(adapters=[], steps=1, n=images)).json()["id"]
        assert held.reached.wait(60)
        client.__exit__(None, None, None)
    left = store.job("local", job)
    assert left is not None
    assert (left.status, left.error) == ("queued", "")
    again = finished(serve(), job)
    assert (again["status"], len(again["images"])) == ("done", images)


def test_a_job_is_ended_by_its_image_or_by_its_caller_never_by_both(serve: Serve, store: Store, tmp_path: Path) -> None:
    client = serve(max_requests_per_minute=10_000, max_queued_jobs_per_key=64)
    jobs = [client.post("/v1/jobs", json=ask(adapters=[], steps=1)).json()["id"] for _ in range(32)]
    with ThreadPoolExecutor(8) as threads:  # while the engine works on them
        answers = list(threads.map(lambda job: client.delete(f"/v1/jobs/{job}"), jobs))
    assert {answer.status_code for answer in answers} == {200}
    client.__exit__(None, None, None)
    ends = {job: record.status for job in jobs if (record := store.job("local", job))}
    assert set(ends.values()) <= {"done", "cancelled"}
    done = {f"{job}-0.png" for job, status in ends.items() if status == "done"}
    assert {path.name for path in (tmp_path / "data" / "images").iterdir()} == done
