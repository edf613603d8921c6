"""Accepted jobs on their way through the engine: from the database, into the batch, to finished files."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from tara.adapters.adapter import Adapter, load_adapter
from tara.errors import TaraError
from tara.families.base import Base
from tara.families.settings import BaseSettings
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.capacity import ByteBoundedCache
from tara.inference.denoising import Generation
from tara.inference.engine import Engine, EngineStep, check_request
from tara.inference.fitting import check_fits
from tara.inference.provenance import Provenance, UsedFile, png_with_provenance, used_file
from tara.inference.request import GenerationRequest
from tara.inference.settings import GenerationSettings
from tara.server.schemas import ImageRequest, JobAnswer
from tara.server.settings import ServerSettings
from tara.server.store import AdapterRecord, JobRecord, Store, StoreBusy
from tara.storage.files import atomic_write, remove_unfinished
from tara.storage.validation import build

ADAPTER_CACHE_BYTES = 2**30
SMOOTHING = 0.1  # of the mean time of a step
STORE_TRIES = 5


class QueueFull(TaraError):
    """There are too many unfinished jobs; the client should try again later."""


class Stopping(TaraError):
    """The server is shutting down and accepts no more requests."""

    def __init__(self) -> None:
        super().__init__("The server stops. Try again when it is back.")


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An uploaded adapter in memory, and its entry in the provenance of images."""

    adapter: Adapter
    file: UsedFile


@dataclass(eq=False)
class LiveJob:
    """An unfinished job of this process. ``done`` is set when this process has finished or dropped it."""

    record: JobRecord
    adapters: tuple[UsedFile, ...]
    generations: list[Generation] = field(default_factory=list[Generation])
    done: Future[None] = field(default_factory=Future[None])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def drop(self) -> None:
        """Cancel the job's images in the engine, which frees their rows."""
        with self.lock:
            for generation in self.generations:
                generation.cancel()
        self.release()

    def release(self) -> None:
        """Set ``done``, so that callers stop waiting."""
        with self.lock:
            if not self.done.done():
                self.done.set_result(None)


class Jobs:
    """Runs jobs. `accept` stores a job in the database and returns; `start` resumes the unfinished jobs there."""

    def __init__(self, base: Base, base_name: str, settings: ServerSettings, store: Store) -> None:
        self.base, self.base_name, self.settings, self.store = base, base_name, settings, store
        self.step_seconds = 0.0
        self.on_step: Callable[[EngineStep], object] = lambda _: None
        self.engine = Engine(base, rows=settings.rows, on_step=self._note_step)
        self._live: dict[str, LiveJob] = {}
        self._loaded = ByteBoundedCache[str, LoadedAdapter](ADAPTER_CACHE_BYTES, _loaded_bytes)
        self._deadline: float | None = None
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._thread = threading.Thread(target=self.engine.run, name="engine", daemon=True)
        # files are written in a separate thread, so that the next step does not wait for the disk
        self._writer = ThreadPoolExecutor(1, "writer")

    def start(self) -> None:
        for folder in (self.images_folder, self.adapters_folder):
            folder.mkdir(parents=True, exist_ok=True)
            remove_unfinished(folder)
        self.engine.__enter__()
        for record in self.store.unfinished():
            try:
                self._submit(record, *self._request(record.owner, ImageRequest.model_validate_json(record.request)))
            except TaraError as failure:
                self.store.end_job(record.id, "failed", error=str(failure))
        self._thread.start()

    def drain(self) -> None:
        """Accept no more jobs. Jobs that have not started stay in the database for the next process."""
        with self._lock:
            self._deadline = self._deadline or time.monotonic() + self.settings.drain_seconds
        for live in list(self._live.values()):
            if not any(made.steps for made in live.generations):
                live.drop()

    def close(self) -> None:
        """Wait for started jobs for at most ``drain_seconds``, then stop the engine."""
        self.drain()
        assert self._deadline is not None
        wait([live.done for live in list(self._live.values())], max(0.0, self._deadline - time.monotonic()))
        self.engine.stop()
        self._thread.join()
        self._writer.shutdown()
        self.engine.close()
        for live in list(self._live.values()):
            live.release()

    @property
    def is_draining(self) -> bool:
        return self._deadline is not None

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    @property
    def images_folder(self) -> Path:
        return self.settings.data / "images"

    @property
    def adapters_folder(self) -> Path:
        return self.settings.data / "adapters"

    def image_path(self, job_id: str, number: int) -> Path:
        return self.images_folder / f"{job_id}-{number}.png"

    def adapter_path(self, record: AdapterRecord) -> Path:
        return self.adapters_folder / f"{record.id}.safetensors"

    def accept(self, owner: str, request: ImageRequest) -> LiveJob:
        """Check a request and store it as a job, which survives a restart of the server.

        Raises:
            QueueFull: when the owner has, or all owners together have, too many unfinished jobs.
            Stopping: when the server is shutting down.
            TaraError: for a request that cannot be generated.
        """
        prepared = self._request(owner, request)
        record = JobRecord(owner=owner, request=request.model_dump_json())
        with self._lock:
            if self.is_draining:
                raise Stopping
            if self.store.count_unfinished() >= self.settings.max_queued_jobs:
                raise QueueFull("The queue is full. Try again later.")
            if self.store.count_unfinished(owner) >= self.settings.max_queued_jobs_per_key:
                raise QueueFull(f"You have {self.settings.max_queued_jobs_per_key} unfinished jobs. Wait for some.")
            self.store.add_job(record)
        return self._submit(record, *prepared)

    def cancel(self, record: JobRecord) -> None:
        """Cancel a job. Its rows are free from the next step on."""
        if self.store.end_job(record.id, "cancelled") and (live := self._live.pop(record.id, None)):
            live.drop()

    def remove_images(self, record: JobRecord) -> None:
        for number in range(record.images):
            self.image_path(record.id, number).unlink(missing_ok=True)

    def answer(self, record: JobRecord) -> JobAnswer:
        """The current state of a job."""
        live = self._live.get(record.id)
        answer = JobAnswer(id=record.id, status="queued", created=record.created, error=record.error)
        if record.status != "queued":
            addresses = [f"/v1/images/{record.id}/{number}" for number in range(record.images)]
            return answer.model_copy(update={"status": record.status, "images": addresses})
        if live is None or not (begun := [made for made in live.generations if made.steps]):
            return answer
        step, steps = sum(made.step for made in begun), sum(made.steps for made in begun)
        left = max(made.steps - made.step for made in begun) * self.step_seconds
        return answer.model_copy(update={"status": "running", "step": step, "steps": steps, "seconds_left": left})

    def live(self, job_id: str) -> LiveJob | None:
        return self._live.get(job_id)

    def load(self, record: AdapterRecord) -> LoadedAdapter:
        """An uploaded adapter, cached in memory. Raises TaraError if it is damaged or does not fit the base."""
        with self._loading:
            if record.id not in self._loaded:
                path = self.adapter_path(record)
                adapter = replace(load_adapter(path), name=record.name)
                check_fits(self.base, ActiveAdapter(adapter))
                # the provenance of an image must not name this server's folders
                file = UsedFile(given=record.name, path=record.name, sha256=used_file(path).sha256)
                self._loaded[record.id] = LoadedAdapter(adapter, file)
            return self._loaded[record.id]

    def forget(self, record: AdapterRecord) -> None:
        """Delete an adapter's file. Accepted jobs keep the adapter in memory."""
        with self._loading:
            self._loaded.pop(record.id, None)
        self.adapter_path(record).unlink(missing_ok=True)

    def _request(self, owner: str, asked: ImageRequest) -> tuple[GenerationRequest, tuple[UsedFile, ...]]:
        used, files = list[ActiveAdapter](), list[UsedFile]()
        for named in asked.adapters:
            record = self.store.adapter(owner, named.name)
            if record is None:
                raise TaraError(f"You have no adapter '{named.name}'. Upload it to /v1/adapters, or list those there.")
            loaded = self.load(record)
            used.append(ActiveAdapter(loaded.adapter, named.weight, named.rare_word, named.class_word))
            files.append(loaded.file)
        width, height = asked.sides
        for value, name, most in ((width, "width", self.settings.max_side), (height, "height", self.settings.max_side),
                                  (asked.steps, "steps", self.settings.max_steps)):  # fmt: skip
            if value is not None and value > most:
                raise TaraError(f"{name} is {value}, but this server takes at most {most}.")
        values = asked.model_dump(include={"negative_prompt", "steps", "guidance_scale", "composer"})
        settings = build(GenerationSettings, values | {"width": width, "height": height})
        seeds = tuple((asked.seed + number) % 2**53 for number in range(asked.n))
        request = GenerationRequest(prompt=asked.prompt, adapters=tuple(used), seeds=seeds, settings=settings)
        request.check()
        check_request(request)
        return request, tuple(files)

    def _submit(self, record: JobRecord, request: GenerationRequest, files: tuple[UsedFile, ...]) -> LiveJob:
        live = LiveJob(record, files)
        self._live[record.id] = live

        def on_change(_: Generation) -> None:
            with live.lock:  # an image may end before `submit` has returned
                generations = live.generations
            # a cancelled image has no pixels; `cancel` or `drain` has handled its job
            if all(made.is_over for made in generations) and not any(made.cancelled for made in generations):
                self._writer.submit(self._finish, live)

        with live.lock:
            live.generations = self.engine.submit(request, on_change)
        return live

    def _finish(self, live: LiveJob) -> None:
        if live.done.done():  # it has been dropped
            return
        failure = next((made.failure for made in live.generations if made.failure is not None), None)
        try:
            if failure is None:
                for number, made in enumerate(live.generations):
                    assert made.image is not None
                    png = png_with_provenance(made.image, self._provenance(live, made))
                    atomic_write(self.image_path(live.record.id, number), png)
        except Exception as unwritten:  # otherwise clients would wait for this job forever
            failure = unwritten
        error = ""
        if failure is not None:
            known = isinstance(failure, TaraError)
            error = str(failure) if known else f"The image was not generated ({type(failure).__name__})."
        try:
            self._end(live, images=0 if error else len(live.generations), error=error)
        finally:
            self._live.pop(live.record.id, None)
            live.release()

    def _end(self, live: LiveJob, *, images: int, error: str) -> None:
        """Store a job's final status. If the database does not respond, the job stays queued for the next process."""
        job, status = live.record, "failed" if error else "done"
        for _ in range(STORE_TRIES):
            with suppress(StoreBusy):
                if not self.store.end_job(job.id, status, images=images, error=error):
                    for number in range(images):  # it was cancelled meanwhile
                        self.image_path(job.id, number).unlink(missing_ok=True)
                break
        with suppress(StoreBusy):  # what stays is removed at the end of the next job
            for old in self.store.remove_oldest(job.owner, self.settings.max_images_kept_per_key):
                self.remove_images(old)

    def _provenance(self, live: LiveJob, made: Generation) -> Provenance:
        return Provenance(
            prompt=made.request.prompt,
            seed=made.seed,
            adapters=live.adapters,
            base=BaseSettings(base=self.base_name),
            settings=made.request.settings,
        )

    def _note_step(self, step: EngineStep) -> None:
        mean = self.step_seconds or step.seconds
        self.step_seconds = mean + SMOOTHING * (step.seconds - mean)
        self.on_step(step)


def _loaded_bytes(loaded: LoadedAdapter) -> int:
    return sum(delta.a.nbytes + delta.b.nbytes for delta in loaded.adapter.all_layers.values())
