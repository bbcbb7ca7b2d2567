"""Serves an ASGI application, in process, one exchange at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from .errors import ApiError
from .limits import BODY_TIMEOUT, MAX_JSON_BODY, STREAM_SILENCE

if TYPE_CHECKING:
    from .exchange import Exchange

__all__ = ["STREAMED", "Application", "serve_asgi"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

STREAMED: Final = frozenset((b"/snapshots/import",))
"""What takes a body of any size, piece by piece, and may answer so; the route bounds both."""


async def serve_asgi(app: Application, exchange: Exchange, *, base: bytes) -> None:
    """Have the application answer. `path` and `root_path` of its scope are **not** decoded, so that a route matches
    segments as they were sent.

    The body is received whole first, `MAX_JSON_BODY` bytes at most in `BODY_TIMEOUT` seconds: else ApiError 413 or 408.
    Of what is `STREAMED` it comes as it is read, with at most `STREAM_SILENCE` seconds between two pieces.
    """
    head = exchange.head
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": head.method.decode("ascii"),
        "scheme": exchange.scheme,
        "path": head.path.decode("latin-1"),
        "raw_path": head.path,
        "query_string": head.query,
        "root_path": base.decode("ascii"),
        "headers": list(head.headers),
        "client": None,
        "server": None,
    }
    if head.method == b"POST" and head.path[len(base) :] in STREAMED:
        answer = _Answer(exchange)
        await app(scope, _Pieces(exchange).receive, answer.send)
        await answer.finish()
        return
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            body = await _receive_body(exchange)
    except TimeoutError:
        raise ApiError(408, "RequestTimeout", f"the request's body took longer than {BODY_TIMEOUT:g} s") from None
    requests = iter(({"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}))

    async def receive() -> Message:
        return next(requests)

    answer = _Answer(exchange)
    await app(scope, receive, answer.send)
    await answer.finish()


class _Pieces:
    """A request's body as it comes."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._over = False

    async def receive(self) -> Message:
        if self._over:
            return {"type": "http.disconnect"}
        try:
            async with asyncio.timeout(STREAM_SILENCE):
                data = await self._exchange.receive_body()
        except TimeoutError:
            message = f"nothing of the request's body came for {STREAM_SILENCE:g} s"
            raise ApiError(408, "RequestTimeout", message) from None
        self._over = data is None
        return {"type": "http.request", "body": data or b"", "more_body": not self._over}


class _Answer:
    """Sends an answer: one that is whole when the application has returned, so that an error it raises is answered
    instead; others piece by piece.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._status = 500
        self._headers: list[tuple[bytes, bytes]] = []
        self._whole: bytes | None = None
        self._begun = False

    async def send(self, message: Message) -> None:
        """What the application calls."""
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], list(message["headers"])
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if not self._begun and not more:
            self._whole = body
            return
        if not self._begun:
            self._begun = True
            await self._exchange.send_head(self._status, self._headers)
        if body:
            await self._exchange.send_body(body)
        if not more:
            await self._exchange.finish()

    async def finish(self) -> None:
        """Send what is whole."""
        if not self._begun:
            await self._exchange.respond(self._status, self._headers, self._whole or b"")


async def _receive_body(exchange: Exchange) -> bytes:
    body = bytearray()
    while (data := await exchange.receive_body()) is not None:
        body += data
        if len(body) > MAX_JSON_BODY:
            raise ApiError(413, "InvalidRequest", f"a request body has at most {MAX_JSON_BODY:,} bytes")
    return bytes(body)
