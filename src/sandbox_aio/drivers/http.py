"""Sends HTTP calls with httpx, on asyncio and trio.

The protocol decides what a request is, whether it may be sent again and what a response means; this file opens
connections, moves bytes, sleeps and draws the jitter. No exception of httpx leaves it.
"""

from __future__ import annotations

import math
import random
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import attrs
import httpx

from ..protocol.endpoint import merge_headers
from ..protocol.http_call import HttpResponse
from ..protocol.http_retry import HttpRetry
from .http_body import Body, UploadBody, UploadSource, WholeBody
from .http_failures import AttemptFailed, classify, too_long, took_too_long
from .http_pool import CONNECT_SECONDS, HttpPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from ..protocol.download import Download
    from ..protocol.http_call import HttpCall

__all__ = ["HttpDriver", "ResponseStream", "UploadSource"]

T = TypeVar("T")

_MAX_ERROR_BYTES = 64 * 1024


class HttpDriver:
    """Sends the calls of one client. Cancelling one closes its connection; the server may still carry the request out.

    Every method raises a `SandboxClientError` for whatever goes wrong between here and the server.
    """

    def __init__(self, *, headers: Mapping[str, str], max_retries: int) -> None:
        """Open nothing yet.

        Args:
            headers: Sent with every request, unless a call overrides them.
            max_retries: Attempts after the first; 0 for none.
        """
        self.pool: HttpPool = HttpPool()
        self.headers: dict[str, str] = dict(headers)
        self.max_retries = max_retries

    async def call(self, call: HttpCall[T], headers: Mapping[str, str] | None = None) -> T:
        """Send a call, again if that helps, and read the answer.

        Args:
            headers: For this call only; they override those of the driver.
        """
        return await self._send(call, headers, lambda: WholeBody(call.body))

    async def upload(
        self,
        call: HttpCall[T],
        source: UploadSource,
        frame: tuple[bytes, bytes],
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """Send a call whose body is `source` between the two parts of `frame`, a piece at a time.

        It is sent again only if the source was not touched or can be read anew. `call.timeout` bounds each silence
        of the server, not the whole. An exception of the source passes through.
        """
        return await self._send(call, headers, lambda: UploadBody(source, frame))

    async def download(
        self,
        download: Download,
        write: Callable[[bytes], Awaitable[object]],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Hand a file's bytes to `write`, each byte once and in order, over as many connections as it takes."""
        retry = HttpRetry(download.request().resend, self.max_retries)
        while True:
            try:
                async with self._open(download.request(), headers, WholeBody(None)) as stream:
                    wait = retry.after_response(stream.head.status, stream.head.headers, jitter=random.random())
                    if wait is None:
                        return await _receive(download, stream, write)
            except AttemptFailed as attempt:
                wait = download.interrupted(jitter=random.random())
                if wait is None:
                    raise attempt.error from attempt.__cause__
            await anyio.sleep(wait)

    async def _send(self, call: HttpCall[T], headers: Mapping[str, str] | None, new_body: Callable[[], Body]) -> T:
        retry = HttpRetry(call.resend, self.max_retries)
        while True:
            body = new_body()
            try:
                response = await self._exchange(call, headers, body)
                wait = retry.after_response(response.status, response.headers, jitter=random.random())
            except AttemptFailed as attempt:
                wait = retry.after_failure(attempt.failure, jitter=random.random())
                if wait is None or body.spent:
                    raise attempt.error from attempt.__cause__
            else:
                if wait is None or body.spent:
                    return call.read(attrs.evolve(response, sent_before=retry.maybe_done))
            await anyio.sleep(wait)

    async def _exchange(self, call: HttpCall[Any], headers: Mapping[str, str] | None, body: Body) -> HttpResponse:
        """One attempt."""
        with anyio.move_on_after(math.inf if call.unbounded_body else call.timeout + CONNECT_SECONDS):
            async with self._open(call, headers, body) as stream:
                return await stream.read(call.max_body_bytes)
        raise took_too_long(call)

    @asynccontextmanager
    async def _open(
        self, call: HttpCall[Any], headers: Mapping[str, str] | None, body: Body
    ) -> AsyncIterator[ResponseStream]:
        """One attempt, up to the head of the response. Raises AttemptFailed or a SandboxClientError."""
        merged = merge_headers(self.headers, headers, call.headers, body.framing)
        timeout = httpx.Timeout(call.timeout, connect=min(call.timeout, CONNECT_SECONDS))
        with self.pool.lend(call.url) as client:
            try:
                request = client.build_request(call.method, call.url, headers=merged, timeout=timeout)
                if "transfer-encoding" in merged:
                    request.headers.pop("content-length", None)  # Some versions of httpx say 0.
                request.stream = body
                response = await client.send(request, stream=True)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise classify(error, call) from error
            finally:
                await body.aclose()
            stream = ResponseStream(call, response)
            try:
                yield stream
            finally:
                await stream.aclose()


async def _receive(download: Download, stream: ResponseStream, write: Callable[[bytes], Awaitable[object]]) -> None:
    head = stream.head
    download.accept(head if head.success else await stream.read_beginning(_MAX_ERROR_BYTES))
    while piece := await stream.receive():
        download.received(len(piece))
        await write(piece)


class ResponseStream:
    """A response whose body is read piece by piece."""

    def __init__(self, call: HttpCall[Any], response: httpx.Response) -> None:
        self.head: HttpResponse = HttpResponse(
            status=response.status_code, headers={name.lower(): value for name, value in response.headers.items()}
        )
        self.response = response
        self._call = call
        self._pieces = response.aiter_bytes()
        self._unread = b""

    async def receive(self) -> bytes:
        """The next piece; empty at the end."""
        if piece := self._unread:
            self._unread = b""
            return piece
        try:
            async for piece in self._pieces:
                if piece:
                    return piece
        except httpx.HTTPError as error:
            raise classify(error, self._call) from error
        return b""

    def unread(self, data: bytes) -> None:
        """Have these bytes, which were received, received again."""
        self._unread = data + self._unread

    async def read(self, limit: int | None) -> HttpResponse:
        """The whole response."""
        pieces = []
        size = 0
        while piece := await self.receive():
            size += len(piece)
            if limit is not None and size > limit:
                raise too_long(self._call, limit)
            pieces.append(piece)
        return attrs.evolve(self.head, body=b"".join(pieces))

    async def read_beginning(self, limit: int) -> HttpResponse:
        """The response with at least `limit` bytes of its body, or all of it."""
        body = b""
        while len(body) < limit and (piece := await self.receive()):
            body += piece
        return attrs.evolve(self.head, body=body)

    async def aclose(self) -> None:
        """Give the connection back if the body was read to its end, else close it."""
        with anyio.CancelScope(shield=True):
            await self.response.aclose()
            # The generators of httpx and httpcore must run to their end, or trio complains that they were left halfway.
            with suppress(httpx.HTTPError, httpx.StreamError):
                async for _ in self._pieces:
                    pass
