"""The server's process. It listens until SIGTERM or Ctrl-C and then finishes the requests in progress."""

import math
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool

from tara.server.settings import ServerSettings


class _Server(uvicorn.Server):
    """Uvicorn's server. On shutdown it first drains the jobs. The process then exits normally, not by the signal."""

    def __init__(self, app: FastAPI, settings: ServerSettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                log_level="warning",
                server_header=False,
                timeout_graceful_shutdown=math.ceil(settings.drain_seconds),
            )
        )
        self._jobs = app.state.jobs

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Shut down after the requests in progress; a second Ctrl-C ends at once."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await run_in_threadpool(self._jobs.drain)
        await super().shutdown(sockets)


def serve(app: FastAPI, settings: ServerSettings) -> None:
    """Listen until SIGTERM or Ctrl-C."""
    _Server(app, settings).run()
