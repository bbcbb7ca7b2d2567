"""A TCP proxy in the test's own event loop, whose connections a test can cut, hold up and refuse."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.abc

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["Wire", "wire_to"]

_GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


class Wire:
    """The proxy, while it runs."""

    def __init__(self, port: int) -> None:
        self.port = port
        """Where it listens, at 127.0.0.1."""
        self.connections = 0
        """How many it has accepted."""
        self.refusing = False
        """Whether it closes what it accepts at once."""
        self.silent = False
        """Whether it loses what it is sent."""
        self._open: set[anyio.abc.SocketStream] = set()

    def cut(self) -> None:
        """Reset every connection, on both sides."""
        for stream in self._open:
            raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.shutdown(socket.SHUT_RD)  # the pumps see an end, and close

    async def _serve(self, client: anyio.abc.SocketStream, target: int) -> None:
        self.connections += 1
        async with client:
            if self.refusing:
                return
            async with await anyio.connect_tcp("127.0.0.1", target) as server:
                self._open |= {client, server}
                async with anyio.create_task_group() as group:
                    group.start_soon(self._pump, client, server, group.cancel_scope)
                    group.start_soon(self._pump, server, client, group.cancel_scope)
                self._open -= {client, server}

    async def _pump(
        self, source: anyio.abc.SocketStream, sink: anyio.abc.SocketStream, over: anyio.CancelScope
    ) -> None:
        try:
            while True:
                data = await source.receive()
                if not self.silent:
                    await sink.send(data)
        except _GONE:
            over.cancel()


@asynccontextmanager
async def wire_to(target: int) -> AsyncGenerator[Wire]:
    """Run a proxy to a port of 127.0.0.1."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        wire = Wire(listener.extra(anyio.abc.SocketAttribute.local_port))

        async def handle(stream: anyio.abc.SocketStream) -> None:
            await wire._serve(stream, target)

        group.start_soon(listener.serve, handle)
        yield wire
        group.cancel_scope.cancel()
