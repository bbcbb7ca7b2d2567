"""A sandbox with a program on a port, and clients of it that speak bytes."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING

import attrs
import httpx

from sandbox_aio.server.serve import Ready, Server
from sandbox_aio.server.service_headers import TOKEN_HEADER
from tests.server.fakes import Daemon, FakeRuntime, RawClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["PORT", "RecordingApp", "Service", "a_service"]

PORT = 8000
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@attrs.define(eq=False)
class RecordingApp:
    """Keeps every byte of every connection. Answers when the first request on it is whole, then reads to its end."""

    answer: bytes = OK
    connections: list[bytes] = attrs.field(factory=list)
    ended: asyncio.Event = attrs.field(factory=asyncio.Event)
    """Set when a connection has ended."""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        index = len(self.connections)
        self.connections.append(b"")
        answered = False
        try:
            while data := await reader.read(2**16):
                self.connections[index] += data
                if not answered and whole_request(self.connections[index]):
                    answered = True
                    writer.write(self.answer)
                    await writer.drain()
        except ConnectionError:
            pass
        finally:
            self.ended.set()

    def requests(self) -> list[SeenRequest]:
        """What each connection carried: exactly one request each, or this fails."""
        return [SeenRequest.parse(data) for data in self.connections]


@attrs.frozen
class SeenRequest:
    """A request as strict as the grammar, with nothing before or after it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    trailers: list[tuple[str, str]]

    @classmethod
    def parse(cls, data: bytes) -> SeenRequest:
        head, empty_line, rest = data.partition(b"\r\n\r\n")
        assert empty_line, data
        first, *lines = head.split(b"\r\n")
        line = re.fullmatch(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (/[\x21-\x7e]*) HTTP/1\.1", first)
        assert line is not None, first
        headers = [_field(field) for field in lines]
        names = [name for name, _ in headers]
        assert names.count("host") == 1
        framing = [name for name in names if name in ("content-length", "transfer-encoding")]
        assert len(framing) <= 1, framing
        body = rest
        trailers: list[tuple[str, str]] = []
        if framing == ["transfer-encoding"]:
            body, trailers = _chunks(rest)
        else:
            length = dict(headers).get("content-length", "0")
            assert re.fullmatch(r"\d+", length)
            assert len(rest) == int(length), (length, rest)
        return cls(line[1].decode(), line[2].decode(), headers, body, trailers)

    def header(self, name: str) -> str | None:
        """The only value of a header; None without it."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, values
        return values[0] if values else None


def whole_request(data: bytes) -> bool:
    """Whether a request has come to its end, by its own framing."""
    head, empty_line, rest = data.partition(b"\r\n\r\n")
    if not empty_line:
        return False
    if b"\r\ntransfer-encoding: chunked" in head.lower():
        return rest.endswith(b"0\r\n\r\n") or re.search(rb"\r\n0\r\n.*\r\n\r\n$", rest, re.DOTALL) is not None
    length = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
    return length is None or len(rest) >= int(length[1])


def _field(line: bytes) -> tuple[str, str]:
    match = re.fullmatch(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\x20-\x7e\x80-\xff\t]*)", line)
    assert match is not None, line
    return match[1].decode().lower(), match[2].decode("latin-1")


def _chunks(data: bytes) -> tuple[bytes, list[tuple[str, str]]]:
    body = b""
    while True:
        size, _, rest = data.partition(b"\r\n")
        assert re.fullmatch(rb"[0-9a-fA-F]+", size), size
        length = int(size, 16)
        if not length:
            trailers, _, after = rest.partition(b"\r\n") if rest == b"\r\n" else rest.partition(b"\r\n\r\n")
            assert after == b"", after
            return body, [_field(line) for line in trailers.split(b"\r\n") if line]
        assert rest[length : length + 2] == b"\r\n"
        body += rest[:length]
        data = rest[length + 2 :]


@attrs.frozen
class Service:
    """A port of a running sandbox, with a token for it."""

    ready: Ready
    server: Server
    daemon: Daemon
    token: str
    app: RecordingApp

    @property
    def id(self) -> str:
        return self.daemon.spec.id

    @property
    def host(self) -> str:
        """The service's own host, with the server's port."""
        return f"{self.id}--{PORT}.localhost:{self.ready.url.rpartition(':')[2]}"

    @property
    def prefix(self) -> str:
        return f"/svc/{self.id}/{PORT}"

    def mint(self, *, expires_in: float = 600, port: int = PORT, embed_origins: tuple[str, ...] = ()) -> str:
        """Another token."""
        return self.server.authority.mint(
            sandbox_id=self.id, port=port, audience=self.host, expires_in=expires_in, embed_origins=embed_origins
        ).token

    def head(self, method: str = "GET", path: str = "/", *headers: str, token: str | None = "") -> bytes:
        """A request's head on the service's own host, with its token or another, or None."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}"]
        if token is not None:
            lines.append(f"{TOKEN_HEADER.decode()}: {token or self.token}")
        return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1")

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[RawClient]:
        async with RawClient.connect(self.ready.url) as client:
            yield client

    async def get(self, path: str = "/", *headers: str, token: str | None = "") -> tuple[int, dict[str, str], bytes]:
        """Ask on a connection of its own."""
        async with self.connect() as client:
            return await client.ask(self.head("GET", path, *headers, token=token))


async def a_service(
    server: Server, ready: Ready, runtime: FakeRuntime, key: str, sandbox_id: str | None = None
) -> Service:
    """Have a recording program on `PORT` of a sandbox, which is made if there is none."""
    if sandbox_id is None:
        async with httpx.AsyncClient(base_url=ready.endpoint, headers={"x-api-key": key}) as http:
            sandbox_id = (await http.post("/boxes", json={"name": "one"})).json()["id"]
    assert sandbox_id is not None
    daemon = runtime.daemons[sandbox_id]
    app = RecordingApp()
    daemon.apps[PORT] = app
    service = Service(ready, server, daemon, "", app)
    return attrs.evolve(service, token=service.mint())
