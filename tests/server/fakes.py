"""A runtime whose sandboxes are small HTTP servers in this process, and a client that speaks bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import parse_qsl

import attrs
import h11

from sandbox_aio.runtimes.base import (
    Capabilities,
    Captured,
    DaemonAddress,
    ExitCallback,
    RuntimeFailure,
    RuntimeStatus,
    SandboxSpec,
    SnapshotInfo,
    Unavailable,
)

__all__ = ["HOST", "App", "Daemon", "FakeRuntime", "RawClient", "Received"]

HOST = SnapshotInfo(
    id="6f0c0a52-3e0a-5d0e-9e51-0a4f3b1f7d10",
    name="host",
    tags=("latest",),
    fs_capacity_bytes=16 * 2**30,
    work_dir="/",
    env_vars={"LANG": "C.UTF-8"},
)

CAPABILITIES = Capabilities(
    runtime="fake",
    strength="process",
    uids="single",
    memory="none",
    cpu="none",
    pids="none",
    disk="none",
    network="shared",
    seccomp=False,
)


@attrs.frozen
class Received:
    """A request as a daemon saw it."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


App = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""A program that listens on a port of a sandbox: serves one connection."""

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter, h11.Connection, h11.Request], Awaitable[None]]


@attrs.define(eq=False)
class Daemon:
    """One sandbox's HTTP server: answers 200 with its own id and what it was asked, unless `answer` says otherwise.

    `/connect` leads to one of `apps`, by its port.
    """

    spec: SandboxSpec
    path: str
    requests: list[Received] = attrs.field(factory=list)
    answer: Answer | None = None
    apps: dict[int, App] = attrs.field(factory=dict)
    lost: asyncio.Event = attrs.field(factory=asyncio.Event)
    """Set when a connection ends while `answer` runs or after it."""
    server: asyncio.Server | None = None
    tasks: set[asyncio.Task[None]] = attrs.field(factory=set)

    async def listen(self) -> None:
        self.server = await asyncio.start_unix_server(self._connected, self.path, limit=2**20)

    async def close(self) -> None:
        if self.server is not None:
            self.server.close()
            for task in list(self.tasks):
                task.cancel()
            if self.tasks:
                await asyncio.wait(self.tasks)
            self.server = None
            Path(self.path).unlink(missing_ok=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, h11.ProtocolError):
            pass
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self.lost.set()
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        request = await next_event(connection, reader)
        if not isinstance(request, h11.Request):
            return
        if self.answer is not None:
            await self.answer(reader, writer, connection, request)
            return
        if request.target.startswith(b"/connect?"):
            await self._connect(reader, writer, request)
            return
        body = b""
        while isinstance(event := await next_event(connection, reader), h11.Data):
            body += event.data
        headers = {name.decode(): value.decode() for name, value in request.headers}
        self.requests.append(Received(request.method.decode(), request.target.decode(), headers, body))
        answer = f"{self.spec.hostname} {request.method.decode()} {request.target.decode()}".encode()
        head = [("content-length", str(len(answer))), ("set-cookie", "a=b"), ("connection", "close")]
        writer.write(connection.send(h11.Response(status_code=200, headers=head)) or b"")
        if request.method != b"HEAD":
            writer.write(connection.send(h11.Data(data=answer)) or b"")
        await writer.drain()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: h11.Request) -> None:
        """The raw connection to a port that a daemon gives to the server alone."""
        headers = dict(request.headers)
        assert headers[b"x-sandbox-secret"] == self.spec.secret.encode()
        assert (headers[b"connection"], headers[b"upgrade"]) == (b"Upgrade", b"tcp")
        query = dict(parse_qsl(request.target.partition(b"?")[2].decode()))
        app = self.apps.get(int(query["port"]))
        if app is None:
            assert query["patience"] == "5"
            detail = {"error": "ConnectionRefused", "message": f"nothing listens on port {query['port']}"}
            body = json.dumps({"detail": detail}).encode()
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
            await writer.drain()
            return
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: tcp\r\n\r\n")
        await app(reader, writer)


async def next_event(connection: h11.Connection, reader: asyncio.StreamReader) -> object:
    """The next event, reading as needed."""
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(2**18))
    return event


class FakeRuntime:
    """Sandboxes in this process. Starts fail with `fail`, stops and destroys with `stuck`; starts wait for `gate`."""

    name = "fake"

    def __init__(self) -> None:
        self.daemons: dict[str, Daemon] = {}
        self.calls: list[tuple[str, str]] = []
        self.fail: RuntimeFailure | None = None
        self.stuck: RuntimeFailure | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.on_exit: ExitCallback = lambda id, reason: None
        self.unavailable: Unavailable | None = None
        self.real: DaemonAddress | None = None
        """A daemon that is a process of its own, which is then that of every sandbox that starts."""
        self.closed: bool | None = None
        self.no_egress = False
        self.egress_ports: dict[str, int] = {}
        self._directory = tempfile.TemporaryDirectory(prefix="fake-")

    async def open(self, on_exit: ExitCallback) -> Capabilities:
        if self.unavailable is not None:
            raise RuntimeFailure(self.unavailable.reason)
        self.on_exit = on_exit
        return CAPABILITIES

    async def aclose(self, *, destroy: bool) -> None:
        self.closed = destroy
        for daemon in self.daemons.values():
            await daemon.close()
        self._directory.cleanup()

    async def probe(self) -> Capabilities | Unavailable:
        return self.unavailable or CAPABILITIES

    async def snapshots(self) -> list[SnapshotInfo]:
        return [HOST]

    @property
    def layers_directory(self) -> Path:
        return Path(self._directory.name, "layers")

    @property
    def layer_owner(self) -> int:
        return 0

    async def create(self, spec: SandboxSpec) -> None:
        self.calls.append(("create", spec.id))
        self.daemons.setdefault(spec.id, Daemon(spec, f"{self._directory.name}/{spec.id[:8]}"))

    async def start(self, id: str) -> DaemonAddress:
        self.calls.append(("start", id))
        await self.gate.wait()
        if self.fail is not None:
            raise self.fail
        daemon = self.daemons[id]
        if self.real is not None:
            return self.real
        await daemon.listen()
        return DaemonAddress(path=daemon.path, secret=daemon.spec.secret)

    async def address(self, id: str) -> DaemonAddress | None:
        daemon = self.daemons.get(id)
        if daemon is None or daemon.server is None:
            return None
        return DaemonAddress(path=daemon.path, secret=daemon.spec.secret)

    async def egress_listener(self, id: str) -> socket.socket | None:
        """A listener at any port; `egress_ports` tells the tests which. None with `no_egress`."""
        if self.no_egress:
            return None
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        listener.setblocking(False)
        self.egress_ports[id] = listener.getsockname()[1]
        return listener

    async def capture(self, id: str, layer: Path) -> Captured:
        self.calls.append(("capture", id))
        if self.stuck is not None:
            raise self.stuck
        (layer / "tree" / "changed").write_text(id)
        return Captured(size_bytes=len(id), entries=1, frozen_seconds=0.0)

    async def stop(self, id: str) -> None:
        self.calls.append(("stop", id))
        if self.stuck is not None:
            raise self.stuck
        await self.daemons[id].close()

    async def destroy(self, id: str) -> None:
        self.calls.append(("destroy", id))
        if self.stuck is not None:
            raise self.stuck
        await self.daemons.pop(id).close()

    async def list(self) -> list[RuntimeStatus]:
        return [RuntimeStatus(id=id, state="running" if d.server else "stopped") for id, d in self.daemons.items()]


@attrs.define
class RawClient:
    """A connection to a server, in bytes; answers are parsed by h11."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, url: str) -> AsyncIterator[RawClient]:
        host, _, port = url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=2**20)
        try:
            yield cls(reader, writer)
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def ask(self, data: bytes, *, method: bytes = b"GET") -> tuple[int, dict[str, str], bytes]:
        """Send bytes and read one answer."""
        self.writer.write(data)
        return await self.answer(method=method, upgrade=b"\r\nupgrade:" in data)

    async def answer(self, *, method: bytes = b"GET", upgrade: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Read one answer to a request with that method: status, headers, body (after 101, what came with it)."""
        connection = h11.Connection(h11.CLIENT)
        headers = [("host", "x"), *([("upgrade", "websocket"), ("connection", "upgrade")] if upgrade else [])]
        connection.send(h11.Request(method=method, target="/", headers=headers))
        connection.send(h11.EndOfMessage())
        async with asyncio.timeout(10):
            response = await next_event(connection, self.reader)
            while isinstance(response, h11.InformationalResponse) and response.status_code != 101:
                response = await next_event(connection, self.reader)
            assert isinstance(response, h11.Response | h11.InformationalResponse), response
            fields = {name.decode(): value.decode() for name, value in response.headers}
            if isinstance(response, h11.InformationalResponse):
                return 101, fields, connection.trailing_data[0]
            body = b""
            while isinstance(event := await next_event(connection, self.reader), h11.Data):
                body += event.data
        assert not connection.trailing_data[0]
        return response.status_code, fields, body

    async def ended(self) -> bool:
        """Whether the server closes the connection, within 5 s, sending nothing more."""
        async with asyncio.timeout(5):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True
