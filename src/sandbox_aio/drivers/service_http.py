"""Sends requests to services: httpx with a token, attempts that are worth repeating, and errors of our own."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, TypeVar

import anyio
import attrs
import httpx

from ..protocol.http_call import HttpCall, HttpResponse, nothing
from ..protocol.service_requests import TOKEN_HEADER, ServiceAttempts, ServiceURLRecord, service_target
from .http import ResponseStream
from .http_failures import AttemptFailed, classify
from .http_pool import CONNECT_SECONDS, HttpPool

__all__ = ["MAX_ANSWER_BYTES", "Answer", "Renew", "ServiceHttp"]

T = TypeVar("T")

MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024
"""Bytes of an answer that is read whole. What may be longer is to be streamed."""

MAX_FAILURE_BYTES: Final = 64 * 1024
"""Bytes of an answer to be repeated that are looked at."""

SILENCE_SECONDS: Final = 30.0
"""How long a service may be silent if the caller does not say: it may have to be woken first."""

Renew = Callable[[ServiceURLRecord], Awaitable[ServiceURLRecord | None]]
"""Given what was refused, gives something newer, or None if there is nothing to be had."""


@attrs.frozen
class Answer:
    """An answer whose body is to be received. Closing it ends the exchange."""

    _stream: ResponseStream
    _stack: AsyncExitStack

    @property
    def response(self) -> httpx.Response:
        """Its head."""
        return self._stream.response

    async def receive(self) -> bytes:
        """The next piece; empty at the end. Raises a SandboxClientError if the end is missing."""
        try:
            return await self._stream.receive()
        except AttemptFailed as attempt:
            raise attempt.error from attempt.__cause__

    async def aclose(self) -> None:
        """Give the connection back if the body was read to its end, else close it. Shielded from cancellation."""
        await self._stack.aclose()


@attrs.frozen(kw_only=True)
class ServiceHttp:
    """Sends requests over a client's connections; without a client, over connections of their own."""

    pool: HttpPool | None
    max_retries: int

    async def request(
        self, record: ServiceURLRecord, renew: Renew, method: str, path: str, options: dict[str, Any]
    ) -> httpx.Response:
        """Send a request and read the whole answer, whatever its status. `options` are those of httpx.

        Raises a SandboxClientError for what goes wrong on the way, ValueError for options that cannot be.
        """
        return await self._send(record, renew, method, path, options, lambda stream, _: _whole(stream))

    async def stream(
        self, record: ServiceURLRecord, renew: Renew, method: str, path: str, options: dict[str, Any]
    ) -> Answer:
        """Send a request and give the answer once its head is there. The errors are those of `request`."""

        async def keep(stream: ResponseStream, stack: AsyncExitStack) -> Answer:
            return Answer(stream, stack.pop_all())

        return await self._send(record, renew, method, path, options, keep)

    async def _send(
        self,
        record: ServiceURLRecord,
        renew: Renew,
        method: str,
        path: str,
        options: dict[str, Any],
        use: Callable[[ResponseStream, AsyncExitStack], Awaitable[T]],
    ) -> T:
        attempts = ServiceAttempts(method, replayable=_replayable(options), max_retries=self.max_retries)
        while True:
            try:
                async with AsyncExitStack() as stack:
                    stream = await stack.enter_async_context(self._open(record, method, path, options))
                    status = stream.head.status
                    newer = await renew(record) if attempts.wants_new_token(status) else None
                    wait = await _look(attempts, stream) if attempts.may_pass(status) else None
                    if newer is not None:
                        record, wait = newer, 0.0
                    if wait is None:
                        return await use(stream, stack)
            except AttemptFailed as attempt:
                wait = attempts.after_failure(attempt.failure, jitter=random.random())
                if wait is None:
                    raise attempt.error from attempt.__cause__
            await anyio.sleep(wait)

    @asynccontextmanager
    async def _open(
        self, record: ServiceURLRecord, method: str, path: str, options: dict[str, Any]
    ) -> AsyncIterator[ResponseStream]:
        """One attempt, up to the head of the answer. Raises AttemptFailed or a SandboxClientError."""
        url = service_target(record.service_url, path)
        options = dict(options)
        if options.pop("follow_redirects", False):
            raise ValueError("redirects are not followed, since the token would go along: look at `location` yourself")
        auth = options.pop("auth", None)
        headers = httpx.Headers(options.pop("headers", None))
        headers[TOKEN_HEADER] = record.token
        options.setdefault("timeout", httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS))
        pool = self.pool if self.pool is not None else HttpPool()
        try:
            with pool.lend(url) as client:
                call = HttpCall(method=method, url=url, read=nothing, timeout=SILENCE_SECONDS)
                try:
                    request = client.build_request(method, url, headers=headers, **options)
                    _check_inside(record.service_url, request.url)
                    call = attrs.evolve(call, timeout=request.extensions["timeout"]["read"] or math.inf)
                    response = await client.send(request, auth=auth, stream=True)
                except (httpx.HTTPError, httpx.InvalidURL) as error:
                    raise classify(error, call) from error
                stream = ResponseStream(call, response)
                try:
                    yield stream
                finally:
                    await stream.aclose()
        finally:
            if self.pool is None:
                with anyio.CancelScope(shield=True):
                    await pool.aclose()


def _replayable(options: dict[str, Any]) -> bool:
    return options.get("files") is None and isinstance(options.get("content"), str | bytes | None)


def _check_inside(service_url: str, url: httpx.URL) -> None:
    """A path with `..` could lead out of the service, to its neighbour on the same host."""
    base = httpx.URL(service_url)
    if (url.scheme, url.netloc) != (base.scheme, base.netloc) or not url.raw_path.startswith(base.raw_path):
        raise ValueError(f"the path leads out of the service at {service_url}")


async def _look(attempts: ServiceAttempts, stream: ResponseStream) -> float | None:
    """Read an answer that may be another one soon. Seconds to wait, or None to take it."""
    body = b""
    while len(body) < MAX_FAILURE_BYTES and (piece := await stream.receive()):
        body += piece
    stream.unread(body)
    return attempts.after_response(attrs.evolve(stream.head, body=body), jitter=random.random())


async def _whole(stream: ResponseStream) -> httpx.Response:
    """The answer as httpx has it, its body read."""
    body: HttpResponse = await stream.read(MAX_ANSWER_BYTES)
    answer = stream.response
    headers = httpx.Headers(answer.headers.raw)
    if "content-encoding" in headers:  # what was read is decoded
        for name in ("content-encoding", "content-length"):
            headers.pop(name, None)
    whole = httpx.Response(
        answer.status_code, headers=headers, content=body.body, request=answer.request, extensions=answer.extensions
    )
    whole.elapsed = answer.elapsed
    return whole
