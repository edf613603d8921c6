"""The database: SQLite, and a real PostgreSQL where it is installed."""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tara.errors import TaraError
from tara.server.store import AdapterRecord, JobRecord, Store

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
NO_POSTGRESQL = "PostgreSQL is not installed (apt-get install postgresql)"


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server of this test run."""
    if not BINARIES:
        pytest.skip(NO_POSTGRESQL)
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/tara-postgresql-XXXXXX"], text=True).strip())
    user = "postgres" if os.geteuid() == 0 else None  # it does not run as root
    if user:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def call(*command: str) -> None:
        subprocess.run([str(BINARIES[-1] / command[0]), *command[1:]], user=user, cwd=folder, check=True, timeout=120)

    data, options = str(folder / "data"), f"-p {port} -k {folder} -h 127.0.0.1"
    call("initdb", "-D", data, "-U", "tara", "--auth=trust", "--no-sync")
    call("pg_ctl", "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
    yield f"postgresql+psycopg://tara@127.0.0.1:{port}/postgres"
    call("pg_ctl", "-D", data, "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    sqlite = request.param == "sqlite"
    store = Store(f"sqlite:///{tmp_path / 'tara.db'}" if sqlite else request.getfixturevalue("postgresql"))
    yield store
    store.close()


def test_a_key_belongs_to_one_name(store: Store) -> None:
    key = store.add_key("ann")
    assert store.owner_of(key) == "ann"
    assert store.owner_of(key + "x") is None
    with pytest.raises(TaraError, match="There is a key 'ann' already"):
        store.add_key("ann")


def test_an_owner_sees_own_adapters_and_shared_ones_and_has_one_of_a_name(store: Store) -> None:
    store.add_adapter(AdapterRecord(owner="ann", name="rex", bytes=1))
    store.add_adapter(AdapterRecord(owner="bob", name="rex", bytes=1))
    with pytest.raises(TaraError, match="You have an adapter 'rex'"):
        store.add_adapter(AdapterRecord(owner="ann", name="rex", bytes=1))
    store.add_adapter(AdapterRecord(owner="bob", name="tom", bytes=1, shared=True))
    assert [(record.owner, record.name) for record in store.adapters("ann")] == [("ann", "rex"), ("bob", "tom")]


def test_jobs_are_unfinished_until_they_end_and_the_oldest_are_removed(store: Store) -> None:
    jobs = [JobRecord(owner="ann", request="{}") for _ in range(3)]
    for job in jobs:
        store.add_job(job)
    assert [job.id for job in store.unfinished()] == [job.id for job in jobs]
    assert (store.count_unfinished("ann"), store.count_unfinished("bob")) == (3, 0)
    for job in jobs:
        assert store.end_job(job.id, "done", images=1)
    assert store.unfinished() == []
    assert [job.id for job in store.remove_oldest("ann", 2)] == [jobs[0].id]


def test_a_job_is_its_owners_alone(store: Store) -> None:
    job = JobRecord(owner="dora", request="{}")
    store.add_job(job)
    assert store.job("bob", job.id) is None
    found = store.job("dora", job.id)
    assert found is not None
    assert found.id == job.id
    store.end_job(job.id, "cancelled")


def test_a_job_ends_once_whoever_ends_it(store: Store) -> None:
    job = JobRecord(owner="carl", request="{}")
    store.add_job(job)
    with ThreadPoolExecutor(8) as threads:
        ended = list(threads.map(lambda _: store.end_job(job.id, "done", images=1), range(8)))
    assert ended.count(True) == 1


def test_a_database_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path}/none/tara.db", "nonsense", "postgresql+psycopg://tara@127.0.0.1:1/none"):
        with pytest.raises(TaraError, match="The database cannot be opened"):
            Store(url)
