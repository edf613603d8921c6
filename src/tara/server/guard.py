"""Middleware and checks of every route: body size, security headers, rate limit, origin."""

import time
from collections import deque
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tara.errors import TaraError

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}
MINUTE = 60.0


class ApiError(Exception):
    """An error response in OpenAI's format: status, message of one sentence, code."""

    def __init__(self, status: int, message: str, code: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}


class BodyLimit:
    """Middleware that adds security headers and rejects bodies, while reading, that are too large for their route."""

    def __init__(self, app: ASGIApp, most: int, most_upload: int) -> None:
        self._app, self._most, self._most_upload = app, most, most_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = scope["method"] == "POST" and scope["path"] == "/v1/adapters"
        most, read = self._most_upload if is_upload else self._most, 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise TooLarge
            return message

        async def with_headers(message: Message) -> None:
            if read > most:
                return  # this is the route's response to a body that was cut off
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        with suppress(TooLarge):
            await self._app(scope, bounded, with_headers)
        if read > most:
            sentence = f"The request is larger than {most >> 10} KiB. Send a smaller one."
            await JSONResponse(openai_error(413, sentence, "too_large"), 413, HEADERS)(scope, receive, send)


class TooLarge(Exception):
    """A body is larger than its route allows."""


def openai_error(status: int, message: str, code: str) -> dict[str, dict[str, str | None]]:
    """An error in OpenAI's format."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


class RateLimit:
    """Limits the requests of each key per minute."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._times: dict[str, deque[float]] = {}

    def check(self, owner: str) -> None:
        """Count a request. Raises ApiError (429) if the key is over its limit."""
        now = time.monotonic()  # the system clock may be set back
        times = self._times.setdefault(owner, deque(maxlen=self._most))
        while times and now - times[0] > MINUTE:
            times.popleft()
        if len(times) == self._most:
            raise too_many(f"You may send {self._most} requests a minute. Wait.", MINUTE - (now - times[0]))
        times.append(now)


def too_many(message: str, seconds: float) -> ApiError:
    """An ApiError with status 429 and the seconds after which the client may try again."""
    return ApiError(429, message, "rate_limit_exceeded", {"Retry-After": str(max(1, round(seconds)))})


def bearer(request: Request) -> str:
    """The API key of a request, empty when there is none."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def check_origin(request: Request) -> None:
    """Raises ApiError (403) for a browser's request from a page of another site.

    Browsers send the ``Origin`` header with every request that can change something; a page cannot remove it.
    """
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise ApiError(403, "This server takes no requests from pages of other sites.", "other_site")


def checked_upload_size(size: int, most: int) -> None:
    """Raises TaraError if the adapters of an API key would take ``size`` bytes, more than ``most``."""
    if size > most:
        raise TaraError(f"Your adapters would take {size >> 20} MiB; {most >> 20} MiB are allowed. Delete some.")
