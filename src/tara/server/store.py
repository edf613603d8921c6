"""The database: API keys, adapters and jobs, in SQLite or another database of SQLAlchemy."""

import hashlib
import hmac
import secrets
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal

from sqlalchemy import event, func
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError
from sqlmodel import Field, Session, SQLModel, UniqueConstraint, col, create_engine, delete, or_, select, update

from tara.errors import TaraError, first_line

LOCAL = "local"
"""The owner of everything on a server without keys."""
JobStatus = Literal["queued", "done", "failed", "cancelled"]
BUSY_SECONDS = 5


def new_id() -> str:
    """A random id that cannot be guessed."""
    return uuid.uuid4().hex


class KeyRecord(SQLModel, table=True):
    """An API key. Only the hash of the key is stored."""

    __tablename__ = "keys"  # pyright: ignore[reportAssignmentType, reportUnannotatedClassAttribute]
    name: str = Field(primary_key=True, max_length=64)
    digest: str = Field(index=True, unique=True, max_length=64)


class AdapterRecord(SQLModel, table=True):
    """An uploaded adapter. The id is the name of its file."""

    __tablename__ = "adapters"  # pyright: ignore[reportAssignmentType, reportUnannotatedClassAttribute]
    __table_args__ = (UniqueConstraint("owner", "name"),)  # pyright: ignore[reportUnannotatedClassAttribute]
    id: str = Field(default_factory=new_id, primary_key=True)
    owner: str = Field(index=True)
    name: str = Field(max_length=64)
    shared: bool = False
    bytes: int
    created: float = Field(default_factory=time.time)


class JobRecord(SQLModel, table=True):
    """An accepted request and its status. ``images`` is the number of its image files."""

    __tablename__ = "jobs"  # pyright: ignore[reportAssignmentType, reportUnannotatedClassAttribute]
    id: str = Field(default_factory=new_id, primary_key=True)
    owner: str = Field(index=True)
    status: str = Field(default="queued", index=True)
    request: str
    """The request body, with seeds, as JSON."""
    images: int = 0
    error: str = ""
    created: float = Field(default_factory=time.time, index=True)


class Store:
    """The database; every method is one transaction.

    Raises:
        TaraError: when it cannot be opened or used.
    """

    def __init__(self, url: str) -> None:
        arguments = {"timeout": BUSY_SECONDS, "check_same_thread": False} if url.startswith("sqlite") else {}
        try:
            self._engine = create_engine(url, connect_args=arguments, pool_pre_ping=True)
            if url.startswith("sqlite"):
                event.listen(self._engine, "connect", _durable)
            SQLModel.metadata.create_all(self._engine)
        except (SQLAlchemyError, ImportError) as failure:
            raise TaraError(f"The database cannot be opened ({first_line(failure)}). Check its URL.") from failure

    def close(self) -> None:
        """Close the connections to the database."""
        self._engine.dispose()

    @contextmanager
    def _session(self) -> Generator[Session]:
        try:
            with Session(self._engine, expire_on_commit=False) as session:
                yield session
                session.commit()
        except OperationalError as failure:
            raise StoreBusy(
                f"The database does not answer ({first_line(failure.orig or failure)}). Try again."
            ) from failure

    def add_key(self, name: str) -> str:
        """Create and return an API key. It cannot be read again.

        Raises:
            TaraError: when the name is taken.
        """
        key = f"tara-{secrets.token_urlsafe(32)}"
        try:
            with self._session() as session:
                session.add(KeyRecord(name=name, digest=_digest(key)))
        except IntegrityError:
            raise TaraError(f"There is a key '{name}' already. Choose another name.") from None
        return key

    def has_keys(self) -> bool:
        """Whether any API key exists. Without keys, the owner of everything is `LOCAL`."""
        with self._session() as session:
            return session.exec(select(KeyRecord)).first() is not None

    def owner_of(self, key: str) -> str | None:
        """The name of an API key; None for an unknown key. Keys are compared in constant time."""
        digest = _digest(key)
        with self._session() as session:
            records = session.exec(select(KeyRecord)).all()
        # compare with all keys, so that the time reveals nothing about them
        owners = [record.name for record in records if hmac.compare_digest(record.digest, digest)]
        return owners[0] if owners else None

    def add_adapter(self, record: AdapterRecord) -> None:
        """Raises TaraError when the owner has one of that name."""
        try:
            with self._session() as session:
                session.add(record)
        except IntegrityError:
            raise TaraError(
                f"You have an adapter '{record.name}' already. Delete it first, or rename this one."
            ) from None

    def adapters(self, owner: str) -> list[AdapterRecord]:
        """The owner's adapters, then adapters that others share."""
        mine = or_(col(AdapterRecord.owner) == owner, col(AdapterRecord.shared))
        with self._session() as session:
            records = session.exec(select(AdapterRecord).where(mine).order_by(col(AdapterRecord.created))).all()
        return sorted(records, key=lambda record: record.owner != owner)

    def adapter(self, owner: str, name: str) -> AdapterRecord | None:
        """An adapter by its name, first among the owner's, then among shared ones; None if there is none."""
        return next((record for record in self.adapters(owner) if record.name == name), None)

    def delete_adapter(self, record: AdapterRecord) -> None:
        """Delete an adapter's record. The caller deletes its file."""
        with self._session() as session:
            session.exec(delete(AdapterRecord).where(col(AdapterRecord.id) == record.id))

    def add_job(self, job: JobRecord) -> None:
        """Store an accepted job. From then on, it survives a restart."""
        with self._session() as session:
            session.add(job)

    def job(self, owner: str, job_id: str) -> JobRecord | None:
        """A job of this owner; None if there is none of this id."""
        with self._session() as session:
            record = session.get(JobRecord, job_id)
        return record if record is not None and record.owner == owner else None

    def unfinished(self) -> list[JobRecord]:
        """Unfinished jobs, oldest first."""
        queued = select(JobRecord).where(JobRecord.status == "queued").order_by(col(JobRecord.created))
        with self._session() as session:
            return list(session.exec(queued).all())

    def count_unfinished(self, owner: str | None = None) -> int:
        """The number of unfinished jobs of an owner; of all owners if ``owner`` is None."""
        counted = select(func.count()).select_from(JobRecord).where(JobRecord.status == "queued")
        with self._session() as session:
            return session.exec(counted if owner is None else counted.where(JobRecord.owner == owner)).one()

    def end_job(self, job_id: str, status: JobStatus, *, images: int = 0, error: str = "") -> bool:
        """Set the final status of a queued job; False when another call has done so already."""
        # one statement: SQLite locks no row between reading and writing it
        unended = (col(JobRecord.id) == job_id) & (col(JobRecord.status) == "queued")
        ending = update(JobRecord).where(unended).values(status=status, images=images, error=error)
        with self._session() as session:
            return session.exec(ending).rowcount == 1

    def remove_oldest(self, owner: str, images: int) -> list[JobRecord]:
        """Delete and return an owner's oldest finished jobs, so that at most ``images`` images are kept."""
        done = select(JobRecord).where(JobRecord.owner == owner, col(JobRecord.images) > 0)
        with self._session() as session:
            kept, removed = 0, list[JobRecord]()
            for record in session.exec(done.order_by(col(JobRecord.created).desc())).all():
                kept += record.images
                if kept > images:
                    removed.append(record)
                    session.delete(record)
        return removed


class StoreBusy(TaraError):
    """The database is locked, full or cannot be reached at the moment."""


def _digest(key: str) -> str:
    # a key has 256 random bits: a slow hash would add nothing
    return hashlib.sha256(key.encode()).hexdigest()


def _durable(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # a job that was accepted is on the disk
    cursor.close()
