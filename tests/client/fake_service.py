"""A small HTTP server on a loopback port, for tests that want a peer that misbehaves to order.

It runs in the test's own event loop. A test gives it a handler: a coroutine function from a request to a reply.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import anyio
import anyio.abc
import attrs
import h11

if TYPE_CHECKING:
    from anyio.abc import SocketStream


@attrs.frozen(kw_only=True)
class Request:
    """A request, with its whole body."""

    method: str
    target: str
    headers: Mapping[str, str]
    """Names are lower case."""
    body: bytes
    connection: int
    """Counts connections from 0."""

    @property
    def path(self) -> str:
        """The path, decoded."""
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> dict[str, str]:
        """The query's members."""
        return {name: values[0] for name, values in parse_qs(urlsplit(self.target).query).items()}

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


@attrs.frozen(kw_only=True)
class Reply:
    """A response, and how it is cut short."""

    status: int = 200
    headers: Mapping[str, str] = attrs.field(factory=dict)
    body: bytes = b""
    json: Any = None
    """Instead of a body."""
    cut_after: int | None = None
    """Close the connection after so many bytes of the body."""
    raw: bytes | None = None
    """Send these bytes instead of a response, and close."""

    @property
    def content(self) -> bytes:
        """The body."""
        return self.body if self.json is None else json.dumps(self.json).encode()


def error(status: int, kind: str = "Error", message: str = "no", **headers: str) -> Reply:
    """A reply with the canonical error body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status=status, headers=named, json={"detail": {"error": kind, "message": message}})


Handler = Callable[[Request], Awaitable[Reply]]


class FakeService:
    """The server of `fake_service`."""

    def __init__(self, handler: Handler, url: str) -> None:
        self.url = url
        self.requests: list[Request] = []
        """In the order in which they were complete."""
        self.connections = 0
        """How many were made."""
        self.open = 0
        """How many are open now."""
        self._handler = handler

    async def serve(self, stream: SocketStream) -> None:
        """Answer the requests of one connection."""
        number, self.connections = self.connections, self.connections + 1
        self.open += 1
        http = h11.Connection(h11.SERVER)
        try:
            async with stream:
                while (request := await self._read(http, stream, number)) is not None:
                    self.requests.append(request)
                    if not await self._answer(http, stream, request, await self._handler(request)):
                        return
                    http.start_next_cycle()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, h11.RemoteProtocolError):
            return
        finally:
            self.open -= 1

    async def _read(self, http: h11.Connection, stream: SocketStream, number: int) -> Request | None:
        head: h11.Request | None = None
        body = []
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                try:
                    http.receive_data(await stream.receive())
                except anyio.EndOfStream:
                    http.receive_data(b"")
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                headers = {name.decode(): value.decode() for name, value in head.headers}
                return Request(
                    method=head.method.decode(),
                    target=head.target.decode(),
                    headers=headers,
                    body=b"".join(body),
                    connection=number,
                )
            else:
                return None

    async def _answer(self, http: h11.Connection, stream: SocketStream, request: Request, reply: Reply) -> bool:
        """Send a reply; false if the connection is over."""
        if reply.raw is not None:
            await stream.send(reply.raw)
            return False
        content = reply.content
        headers = {"content-length": str(len(content))} | dict(reply.headers)
        await stream.send(http.send(h11.Response(status_code=reply.status, headers=list(headers.items()))) or b"")
        if request.method == "HEAD" or reply.status in (204, 304):
            content = b""
        for start in range(0, len(content[: reply.cut_after]), 65536):
            piece = content[: reply.cut_after][start : start + 65536]
            await stream.send(http.send(h11.Data(data=piece)) or b"")
        if reply.cut_after is not None:
            return False
        await stream.send(http.send(h11.EndOfMessage()) or b"")
        return http.our_state is h11.DONE and http.their_state is h11.DONE


@asynccontextmanager
async def fake_service(handler: Handler) -> AsyncGenerator[FakeService]:
    """Serve until the end of the block."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0) as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        service = FakeService(handler, f"http://127.0.0.1:{port}")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, service.serve)
            try:
                yield service
            finally:
                tasks.cancel_scope.cancel()
