"""Servers that answer as a test tells them, down to where a connection breaks; and images that they have."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import attrs

from sandbox_aio.images.manifest import ARCHITECTURE

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

__all__ = ["Asked", "Reply", "Stock", "breaking", "digest_of", "serving"]


@attrs.frozen(kw_only=True)
class Asked:
    """One request."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: Mapping[str, str]
    """With names in small letters."""
    body: bytes

    @property
    def offset(self) -> int:
        """Where the range begins that it asks for."""
        return int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))


@attrs.frozen(kw_only=True)
class Reply:
    """One answer; the connection ends after it. `cut`: it ends after so many bytes of the body, which has more."""

    status: int = 200
    headers: Mapping[str, str] = attrs.field(factory=dict)
    body: bytes = b""
    cut: int | None = None
    pause: asyncio.Event | None = None
    """What is waited for before the connection ends."""
    drip: float | None = None
    """Seconds between one KiB of the body and the next."""


@contextlib.asynccontextmanager
async def serving(
    answer: Callable[[Asked], Reply | Awaitable[Reply]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """Run a server; give its `127.0.0.1:PORT`."""
    tasks: set[asyncio.Task[None]] = set()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            # Only the end of the server cancels, and asyncio would report that as an error.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await _serve(reader, writer, answer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, OSError):
                await writer.wait_closed()
            tasks.discard(task)

    server = await asyncio.start_server(connection, "127.0.0.1", 0, ssl=tls)
    try:
        yield "{}:{}".format(*server.sockets[0].getsockname())
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


async def _serve(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Callable[[Asked], Reply | Awaitable[Reply]]
) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, target, _ = head[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    url = urlsplit(target)
    asked = Asked(method=method, path=url.path, query=tuple(parse_qsl(url.query)), headers=headers, body=body)
    reply = answer(asked)
    if not isinstance(reply, Reply):
        reply = await reply
    lines = {"content-length": str(len(reply.body)), **reply.headers, "connection": "close"}
    writer.write(f"HTTP/1.1 {reply.status} It\r\n".encode())
    writer.write("".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode() + b"\r\n")
    if method != "HEAD":
        step = 1 << 10 if reply.drip else len(reply.body) or 1
        for begin in range(0, len(reply.body), step):
            writer.write(reply.body[: reply.cut][begin : begin + step])
            if reply.drip:
                await writer.drain()
                await asyncio.sleep(reply.drip)
    await writer.drain()
    if reply.pause is not None:
        await reply.pause.wait()


@contextlib.asynccontextmanager
async def breaking(target: str, *, up: Sequence[int] = (), down: Sequence[int] = ()) -> AsyncIterator[str]:
    """Run a way to a server of which each connection breaks after so many bytes towards it (`up`), or from it; one for
    which there is no number is whole. Give its `127.0.0.1:PORT`.
    """
    tasks: set[asyncio.Task[None]] = set()
    host, _, port = target.partition(":")
    ups, downs = iter(up), iter(down)

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        there, back = await asyncio.open_connection(host, int(port))
        ways = (_flow(reader, back, next(ups, None)), _flow(there, writer, next(downs, None)))
        flows = [asyncio.create_task(way) for way in ways]
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(flows, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for flow in flows:
                flow.cancel()
            await asyncio.gather(*flows, return_exceptions=True)
            for end in (writer, back):
                end.transport.abort()
                with contextlib.suppress(ConnectionError, OSError):
                    await end.wait_closed()
            tasks.discard(task)

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    try:
        yield "{}:{}".format(*server.sockets[0].getsockname())
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


async def _flow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int | None) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(1 << 16):
            if left is not None:
                piece = piece[:left]
                left -= len(piece)
            writer.write(piece)
            await writer.drain()
            if left == 0:
                return


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Stock:
    """One image, `a/b:latest`, as a registry has it; `answer` is for `serving`."""

    def __init__(self, layers: Sequence[tuple[bytes, bytes]]) -> None:
        """Take the layers, the lowest first: each compressed, and as it is."""
        config = {
            "architecture": ARCHITECTURE,
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [digest_of(plain) for _, plain in layers]},
        }
        self.config = json.dumps(config).encode()
        self.document: dict[str, Any] = {
            "schemaVersion": 2,
            "config": {"digest": digest_of(self.config), "size": len(self.config)},
            "layers": [{"digest": digest_of(data), "size": len(data)} for data, _ in layers],
        }
        self.blobs = {digest_of(data): data for data in (self.config, *(data for data, _ in layers))}
        self.asked: list[Asked] = []

    @property
    def manifest(self) -> bytes:
        return json.dumps(self.document).encode()

    def requests(self, kind: str) -> list[Asked]:
        """Those for `manifests` or `blobs`; of the latter, without the configuration."""
        config = digest_of(self.config)
        return [asked for asked in self.asked if f"/{kind}/" in asked.path and not asked.path.endswith(config)]

    def answer(self, asked: Asked) -> Reply:
        self.asked.append(asked)
        _, _, _, _, kind, name = asked.path.split("/")
        if kind == "manifests":
            return Reply(body=self.manifest)
        data = self.blobs.get(name)
        if data is None:
            return Reply(status=404)
        if (offset := asked.offset) == 0:
            return Reply(body=data)
        if offset >= len(data):
            return Reply(status=416)
        return Reply(
            status=206, body=data[offset:], headers={"content-range": f"bytes {offset}-{len(data) - 1}/{len(data)}"}
        )
