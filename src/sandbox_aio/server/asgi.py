"""Serves an ASGI application, in process, one exchange at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from .errors import ApiError
from .limits import BODY_TIMEOUT, MAX_JSON_BODY

if TYPE_CHECKING:
    from .exchange import Exchange

__all__ = ["Application", "serve_asgi"]

Message = MutableMapping[str, Any]
Application = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


async def serve_asgi(app: Application, exchange: Exchange, *, base: bytes) -> None:
    """Have the application answer. `path` and `root_path` of its scope are **not** decoded, so that a route matches
    segments as they were sent.

    The body is received whole first, `MAX_JSON_BODY` bytes at most in `BODY_TIMEOUT` seconds: else ApiError 413 or 408.
    """
    head = exchange.head
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            body = await _receive_body(exchange)
    except TimeoutError:
        raise ApiError(408, "RequestTimeout", f"the request's body took longer than {BODY_TIMEOUT:g} s") from None
    requests = iter(({"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}))
    status = 500
    headers: list[tuple[bytes, bytes]] = []
    answer = bytearray()

    async def receive() -> Message:
        return next(requests)

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            headers.extend(message["headers"])
        else:
            answer.extend(message.get("body", b""))

    await app(
        {
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
        },
        receive,
        send,
    )
    await exchange.respond(status, headers, bytes(answer))


async def _receive_body(exchange: Exchange) -> bytes:
    body = bytearray()
    while (data := await exchange.receive_body()) is not None:
        body += data
        if len(body) > MAX_JSON_BODY:
            raise ApiError(413, "InvalidRequest", f"a request body has at most {MAX_JSON_BODY:,} bytes")
    return bytes(body)
