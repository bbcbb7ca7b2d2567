"""A daemon that does what a test's script says, over real sockets and with the real server role of the core."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import h11

from sandbox_aio.client.command import CommandSite
from sandbox_aio.drivers.transport import Address
from sandbox_aio.protocol.codec import decode_client_frame, encode_output, encode_server_frame
from sandbox_aio.protocol.frames import ClientFrame, Execute, Exit, Reconnect, ServerFrame, Started
from sandbox_aio.protocol.policy import CommandPolicy, Endpoint
from sandbox_aio.protocol.retry import Backoff
from sandbox_aio.protocol.websocket import Closed, WebSocket

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Awaitable, Callable

QUICK = Backoff(base=0.01, cap=0.05)
"""Delays that a test can wait for."""


class Connection:
    """One connection to the scripted daemon."""

    def __init__(self, stream: anyio.abc.SocketStream, headers: dict[str, str]) -> None:
        self.stream = stream
        self.headers = headers
        self._websocket: WebSocket | None = None
        self._frames: list[ClientFrame] = []
        self.closed: Closed | None = None

    async def accept(self, request: h11.Request, trailing: bytes) -> None:
        """Answer the upgrade with 101."""
        self._websocket = WebSocket.accept(headers=list(request.headers), trailing=trailing)
        await self._flush()

    async def refuse(self, status: int, *headers: tuple[str, str], body: bytes = b"") -> None:
        """Answer the upgrade with something else."""
        lines = [f"HTTP/1.1 {status} No", f"Content-Length: {len(body)}", *(f"{n}: {v}" for n, v in headers)]
        await self.stream.send("\r\n".join([*lines, "", ""]).encode() + body)

    async def receive(self) -> ClientFrame | None:
        """Return the next frame; None when the client is gone."""
        assert self._websocket is not None
        while not self._frames and not self._websocket.finished:
            try:
                self._websocket.receive_bytes(await self.stream.receive(), 0.0)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                self._websocket.receive_eof(0.0)
            await self._take()
        return self._frames.pop(0) if self._frames else None

    async def _take(self) -> None:
        assert self._websocket is not None
        for event in self._websocket.events():
            if isinstance(event, bytes):
                frame = decode_client_frame(event)
                assert frame is not None
                self._frames.append(frame)
            else:
                assert isinstance(event, Closed)
                self.closed = event
        await self._flush()

    async def begin(self) -> Execute | Reconnect:
        """Read what the client wants, and say that the command runs."""
        frame = await self.receive()
        assert isinstance(frame, Execute | Reconnect)
        assert frame.command_id is not None
        await self.send(Started(command_id=frame.command_id, pid=7))
        return frame

    async def send(self, *frames: ServerFrame) -> None:
        """Send frames."""
        await self.send_raw(*(encode_server_frame(frame) for frame in frames))

    async def output(self, text: str, offset: int, stream: Any = "stdout") -> None:
        """Send output."""
        await self.send_raw(encode_output(stream, text.encode(), offset))

    async def exit(self, code: int = 0) -> None:
        """Send the exit, unless the client is gone already, and wait for it to go."""
        assert self._websocket is not None
        if not self._websocket.finished:
            await self.send(Exit(exit_code=code))
        while await self.receive() is not None:
            pass

    async def send_raw(self, *payloads: bytes) -> None:
        """Send text messages."""
        assert self._websocket is not None
        for payload in payloads:
            self._websocket.send_text(payload)
        await self._flush()

    async def send_bytes(self, data: bytes) -> None:
        """Send bytes that are no message."""
        await self.stream.send(data)

    async def close(self, code: int) -> None:
        """Send a close frame and end the stream."""
        assert self._websocket is not None
        self._websocket.close(0.0, code)
        await self._flush()
        await self.stream.aclose()

    async def cut(self) -> None:
        """Break the connection off with a reset."""
        raw = self.stream.extra(anyio.abc.SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.stream.aclose()

    async def wait_for_end(self) -> None:
        """Read until the client is gone."""
        while await self.receive() is not None:
            pass

    async def _flush(self) -> None:
        assert self._websocket is not None
        data = b"".join(self._websocket.bytes_to_send())
        if data:
            try:
                await self.stream.send(data)
            except anyio.BrokenResourceError:
                self._websocket.receive_eof(0.0)


class Owner:
    """What a command needs of a client."""

    def __init__(self, task_group: anyio.abc.TaskGroup | None = None, context: ssl.SSLContext | None = None) -> None:
        self.task_group = task_group
        self._context = context

    def ssl_context(self) -> ssl.SSLContext:
        """The one that the test made."""
        assert self._context is not None
        return self._context


class Daemon:
    """Listens on a port of the loopback interface and runs one script per connection in turn; the last repeats."""

    def __init__(self, *scripts: Callable[[Connection], Awaitable[None]]) -> None:
        self._scripts = list(scripts)
        self.connections: list[Connection] = []
        self.port = 0

    def site(self, owner: Owner | None = None, **policy: Any) -> CommandSite:
        """How its commands are reached, with short delays."""
        address = Address.of(f"http://127.0.0.1:{self.port}")
        endpoint = Endpoint(host=address.authority, target="/execute/ws", headers={"x-api-key": "k", "x-extra": "e"})
        return CommandSite(
            address=address,
            endpoint=endpoint,
            policy=CommandPolicy(**{"backoff": QUICK, **policy}),
            owner=owner or Owner(),
            drivers=set(),
        )

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            http = h11.Connection(h11.SERVER)
            while (event := http.next_event()) is h11.NEED_DATA:
                try:
                    http.receive_data(await stream.receive())
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return
            assert isinstance(event, h11.Request)
            connection = Connection(stream, {n.decode(): v.decode() for n, v in event.headers})
            script = self._scripts[min(len(self.connections), len(self._scripts) - 1)]
            self.connections.append(connection)
            if not getattr(script, "refuses", False):
                await connection.accept(event, http.trailing_data[0])
            try:
                await script(connection)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Daemon]:
        """Serve while the block runs."""
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            self.port = listener.extra(anyio.abc.SocketAttribute.local_port)
            async with anyio.create_task_group() as group:
                group.start_soon(listener.serve, self._serve)
                yield self
                group.cancel_scope.cancel()


def refusal(status: int, *headers: tuple[str, str], body: bytes = b"") -> Callable[[Connection], Awaitable[None]]:
    """A script that answers the upgrade with a status."""

    async def script(connection: Connection) -> None:
        await connection.refuse(status, *headers, body=body)

    script.refuses = True  # type: ignore[attr-defined]
    return script


def execute(command: str = "x", **members: Any) -> Execute:
    """A command with closed input and an id."""
    return Execute(**{"command": command, "command_id": "c1", "close_stdin": True, **members})
