"""The routes: OpenAI's images and models, jobs, adapters, health and metrics."""

import asyncio
import base64
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, UploadFile
from fastapi import Path as PathParameter
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from tara.errors import TaraError
from tara.families.base import Base
from tara.server.guard import (
    ApiError,
    BodyLimit,
    RateLimit,
    bearer,
    check_origin,
    checked_upload_size,
    openai_error,
    too_many,
)
from tara.server.jobs import Jobs, LiveJob, QueueFull, Stopping
from tara.server.metrics import Metrics
from tara.server.schemas import AdapterAnswer, ImageData, ImageRequest, ImagesAnswer, JobAnswer, Name, listed
from tara.server.settings import ServerSettings
from tara.server.store import LOCAL, AdapterRecord, JobRecord, Store, StoreBusy
from tara.storage.files import atomic_write

THIS_COMPUTER = ("127.0.0.1", "localhost", "[::1]", "::1")
POLL_SECONDS = 0.2
RETRY_SECONDS = 5


async def _owner(request: Request) -> str:
    """The owner of a request: the name of its API key."""
    return await request.app.state.authorize(request)


Owner = Annotated[str, Depends(_owner)]
Id = Annotated[str, PathParameter(pattern="^[0-9a-f]{32}$")]


def create_app(base: Base, base_name: str, settings: ServerSettings, store: Store) -> FastAPI:
    """The server of a loaded base.

    Raises:
        TaraError: when the server listens beyond this computer and there is no API key.
    """
    if not settings.is_local and not store.has_keys():
        raise TaraError(
            f"host is {settings.host}, which other computers can reach, but there is no API key. Run `tara server key "
            "add NAME`."
        )
    jobs = Jobs(base, base_name, settings, store)
    metrics = Metrics(jobs)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        await run_in_threadpool(jobs.start)
        yield
        await run_in_threadpool(jobs.close)

    app = FastAPI(title="TARA", lifespan=lifespan)
    _handle_errors(app, metrics)
    hosts = settings.allowed_hosts or (THIS_COMPUTER if settings.is_local else ("*",))
    # DNS rebinding: another site could point its name to this computer
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_middleware(BodyLimit, most=settings.max_body_kib << 10, most_upload=settings.max_upload_mib << 20)
    limit = RateLimit(settings.max_requests_per_minute)

    async def authorize(request: Request) -> str:
        key = bearer(request)
        name = await run_in_threadpool(store.owner_of, key) if key else None
        if name is None and (not settings.is_local or await run_in_threadpool(store.has_keys)):
            raise ApiError(401, "There is no such API key. Send 'Authorization: Bearer KEY'.", "invalid_api_key")
        if name is None:
            check_origin(request)  # a page of another site could send requests here, because no key is needed
        limit.check(name or LOCAL)
        return name or LOCAL

    app.state.authorize, app.state.jobs = authorize, jobs
    _add_images(app, jobs)
    _add_jobs(app, jobs)
    _add_adapters(app, jobs)
    _add_operations(app, jobs, metrics)
    return app


def _add_images(app: FastAPI, jobs: Jobs) -> None:
    @app.post("/v1/images/generations")
    async def generate(request: Request, asked: ImageRequest, owner: Owner) -> ImagesAnswer:
        if asked.model not in (None, "", jobs.base_name):
            raise ApiError(
                404, f"There is no model '{asked.model}'. This server has {jobs.base_name}.", "model_not_found"
            )
        live = await run_in_threadpool(jobs.accept, owner, asked)
        await _finished(request, jobs, live)
        record = await run_in_threadpool(jobs.store.job, owner, live.record.id)
        if record is None or record.status == "queued":
            raise Stopping
        if record.status != "done":
            raise TaraError(record.error or "The job was cancelled.")
        data: list[ImageData] = []
        for number in range(record.images):
            if asked.response_format == "url":
                data.append(ImageData(url=f"{str(request.base_url).rstrip('/')}/v1/images/{record.id}/{number}"))
            else:
                png = await run_in_threadpool(jobs.image_path(record.id, number).read_bytes)
                data.append(ImageData(b64_json=base64.b64encode(png).decode()))
        return ImagesAnswer(created=int(time.time()), data=data)

    @app.get("/v1/images/{job_id}/{number}", response_class=Response)
    def image(job_id: Id, number: Annotated[int, PathParameter(ge=0, lt=10)], owner: Owner) -> Response:
        record = _job(jobs, owner, job_id)
        if number >= record.images:
            raise _nothing("image")
        return Response(jobs.image_path(job_id, number).read_bytes(), media_type="image/png")

    @app.get("/v1/models")
    def models(owner: Owner) -> dict[str, Any]:
        return listed([{"id": jobs.base_name, "object": "model", "created": 0, "owned_by": "tara"}])


async def _finished(request: Request, jobs: Jobs, live: LiveJob) -> None:
    """Wait for a job to end. If the client disconnects, the job is cancelled."""
    while not live.done.done():
        if await request.is_disconnected():
            await run_in_threadpool(jobs.cancel, live.record)
        await asyncio.wait([asyncio.wrap_future(live.done)], timeout=POLL_SECONDS)


def _add_jobs(app: FastAPI, jobs: Jobs) -> None:
    @app.post("/v1/jobs", status_code=202)
    def accept(asked: ImageRequest, owner: Owner) -> JobAnswer:
        return jobs.answer(jobs.accept(owner, asked).record)

    @app.get("/v1/jobs/{job_id}")
    def job(job_id: Id, owner: Owner) -> JobAnswer:
        return jobs.answer(_job(jobs, owner, job_id))

    @app.delete("/v1/jobs/{job_id}")
    def cancel(job_id: Id, owner: Owner) -> JobAnswer:
        jobs.cancel(_job(jobs, owner, job_id))
        return jobs.answer(_job(jobs, owner, job_id))

    @app.get("/v1/jobs/{job_id}/events", response_class=StreamingResponse)
    async def events(job_id: Id, owner: Owner) -> StreamingResponse:
        await run_in_threadpool(_job, jobs, owner, job_id)

        async def stream() -> AsyncGenerator[str]:
            before = ""
            while True:
                record = await run_in_threadpool(jobs.store.job, owner, job_id)
                if record is None:
                    return
                answer = jobs.answer(record).model_dump_json()
                if answer != before:
                    yield f"data: {answer}\n\n"
                    before = answer
                if record.status != "queued" or jobs.is_draining:
                    return
                await asyncio.sleep(POLL_SECONDS)

        return StreamingResponse(stream(), media_type="text/event-stream")


def _add_adapters(app: FastAPI, jobs: Jobs) -> None:
    store, settings = jobs.store, jobs.settings

    def answer(record: AdapterRecord, owner: str) -> AdapterAnswer:
        return AdapterAnswer(name=record.name, shared=record.shared, is_mine=record.owner == owner, bytes=record.bytes)

    @app.get("/v1/adapters")
    def adapters(owner: Owner) -> dict[str, Any]:
        return listed([answer(record, owner) for record in store.adapters(owner)])

    @app.get("/v1/adapters/{name}")
    def adapter(name: Name, owner: Owner) -> AdapterAnswer:
        if (record := store.adapter(owner, name)) is None:
            raise _nothing("adapter")
        return answer(record, owner).model_copy(update={"card": jobs.load(record).adapter.card})

    @app.post("/v1/adapters", status_code=201)
    def upload(name: Name, file: UploadFile, owner: Owner, shared: bool = False) -> AdapterAnswer:
        content = file.file.read()
        mine = sum(record.bytes for record in store.adapters(owner) if record.owner == owner)
        checked_upload_size(mine + len(content), settings.max_adapter_mib_per_key << 20)
        record = AdapterRecord(owner=owner, name=name, shared=shared, bytes=len(content))
        try:
            atomic_write(jobs.adapter_path(record), content)
            card = jobs.load(record).adapter.card  # raises TaraError if the file is no adapter for this base
            store.add_adapter(record)
        except TaraError as failure:
            jobs.forget(record)
            # the adapter gets the name that its owner chose; the file's path is not shown
            raise type(failure)(str(failure).replace(str(jobs.adapter_path(record)), name)) from failure
        return answer(record, owner).model_copy(update={"card": card})

    @app.delete("/v1/adapters/{name}")
    def delete(name: Name, owner: Owner) -> dict[str, Any]:
        record = store.adapter(owner, name)
        if record is None or record.owner != owner:
            raise _nothing("adapter")
        store.delete_adapter(record)
        jobs.forget(record)
        return {"name": name, "deleted": True}


def _add_operations(app: FastAPI, jobs: Jobs, metrics: Metrics) -> None:
    @app.get("/healthz")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    def ready() -> dict[str, str]:
        if not jobs.is_running or jobs.is_draining:
            raise ApiError(503, "The engine does not run. Restart the server.", "not_ready")
        jobs.store.has_keys()
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response)
    def measured() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")


def _job(jobs: Jobs, owner: str, job_id: str) -> JobRecord:
    if (record := jobs.store.job(owner, job_id)) is None:
        raise _nothing("job")
    return record


def _nothing(what: str) -> ApiError:
    # the answer is the same for another owner's job or adapter and for an unknown one
    return ApiError(404, f"You have no such {what}.", "not_found")


def _handle_errors(app: FastAPI, metrics: Metrics) -> None:
    def refused(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> JSONResponse:
        metrics.refused.labels(str(status)).inc()
        return JSONResponse(openai_error(status, message, code), status, headers)

    @app.exception_handler(ApiError)
    async def _(_request: Request, failure: ApiError) -> JSONResponse:
        return refused(failure.status, str(failure), failure.code, failure.headers)

    @app.exception_handler(TaraError)
    async def _(_request: Request, failure: TaraError) -> JSONResponse:
        if isinstance(failure, StoreBusy | Stopping):
            return refused(503, str(failure), "busy", {"Retry-After": str(RETRY_SECONDS)})
        if isinstance(failure, QueueFull):
            full = too_many(str(failure), RETRY_SECONDS)
            return refused(full.status, str(full), full.code, full.headers)
        return refused(400, str(failure), "invalid_request")

    @app.exception_handler(RequestValidationError)
    async def _(_request: Request, failure: RequestValidationError) -> JSONResponse:
        fault = failure.errors()[0]
        where = ".".join(str(part) for part in fault["loc"][1:]) or "The body"
        return refused(400, f"{where}: {fault['msg']}.", "invalid_request")

    @app.exception_handler(HTTPException)
    async def _(_request: Request, failure: HTTPException) -> JSONResponse:
        headers = dict(failure.headers or {})
        return refused(failure.status_code, f"{failure.detail}. See /docs for the routes.", "http_error", headers)
