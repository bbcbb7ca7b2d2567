"""A gateway, a client that stands for a program in a sandbox, and hosts to reach: all on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from sandbox_aio.server.egress import EgressGateway
from sandbox_aio.server.egress.config import parse_proxy_config
from sandbox_aio.server.egress.policy import OperatorPolicy, parse_entry

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

__all__ = ["Origin", "Way", "connected", "gateway", "origin"]

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Origin:
    """A host on the internet, as a test sees it. `heads` are the heads of the requests that came."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello") -> None:
        self.answer = answer
        self.heads: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, whose body is read if its length is said."""
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                self.heads.append(await reader.readexactly(int(line[15:])))
        writer.write(self.answer)
        await writer.drain()


@contextlib.asynccontextmanager
async def origin(serve: Serve, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Serve connections at a port of loopback; yields it."""
    tasks: set[asyncio.Task[Any]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(one, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class Way:
    """A gateway that serves one sandbox; `port` is where that one's programs find it."""

    def __init__(self, gateway: EgressGateway, port: int) -> None:
        self.gateway = gateway
        self.port = port
        self.lookups: list[str] = []

    def follow(self, config: object) -> None:
        self.gateway.update("box", parse_proxy_config(config))


@contextlib.asynccontextmanager
async def gateway(
    state_dir: Path,
    *,
    allow: Sequence[str] = ("*.test",),
    is_open: bool = True,
    addresses: Callable[[str], Sequence[str]] = lambda host: ["127.0.0.1"],
    config: object = None,
) -> AsyncIterator[Way]:
    """Serve a sandbox. Names stand for what `addresses` says; the operator has allowed `allow`."""
    way: Way

    async def resolve(host: str) -> Sequence[str]:
        way.lookups.append(host)
        return addresses(host)

    policy = OperatorPolicy(open=is_open, allowed=[parse_entry(text) for text in allow])
    made = EgressGateway(policy, state_dir, resolve=resolve)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    way = Way(made, listener.getsockname()[1])
    made.attach("box", listener, parse_proxy_config(config or {}))
    try:
        yield way
    finally:
        await made.aclose()


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a port of loopback, cut at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
    try:
        async with asyncio.timeout(20):
            yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
