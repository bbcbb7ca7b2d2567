"""Services through a daemon that is a process of its own, as users' programs speak to each other."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from typing import TYPE_CHECKING

import attrs
import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from sandbox_aio.runtimes.base import DaemonAddress
from sandbox_aio.server import forward as forward_module
from tests.daemon.process import SECRET, daemon_process
from tests.server.conftest import KEY
from tests.server.service import Service, a_service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sandbox_aio.server.serve import Ready, Server
    from tests.server.fakes import FakeRuntime

pytestmark = pytest.mark.anyio


@pytest.fixture
async def whole(server: Server, ready: Ready, runtime: FakeRuntime, tmp_path: Path) -> AsyncIterator[Service]:
    """A service whose sandbox has a real daemon, on the network of this machine."""
    with daemon_process(tmp_path) as daemon:
        runtime.real = DaemonAddress(path=daemon.socket_path, secret=SECRET)
        yield await a_service(server, ready, runtime, KEY)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def client(service: Service, port: int) -> httpx.AsyncClient:
    headers = {"x-langsmith-sandbox-service-token": service.mint(port=port)}
    return httpx.AsyncClient(base_url=f"{service.ready.url}/svc/{service.id}/{port}", headers=headers, timeout=10)


async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with the size and the SHA-256 of what was sent, twice the size of it in zeros behind that."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0")
    found, left = hashlib.sha256(), length
    while left:
        data = await reader.read(min(left, 2**18))
        left -= len(data)
        found.update(data)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (64 + length, found.hexdigest().encode()))
    for _ in range(length // 2**18):
        writer.write(bytes(2**18))
        await writer.drain()
    writer.write(bytes(length % 2**18))
    writer.close()
    await writer.wait_closed()


async def test_a_program_that_listens_late_is_waited_for(whole: Service) -> None:
    port = free_port()
    async with client(whole, port) as http:
        asked = asyncio.create_task(http.get("/"))
        await asyncio.wait({asked}, timeout=0.2)
        assert not asked.done()
        server = await asyncio.start_server(digest, "::1", port)
        async with server:
            answer = await asked
    assert (answer.status_code, answer.text) == (200, hashlib.sha256().hexdigest())


async def test_nothing_listens(whole: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_module, "PORT_PATIENCE", 0)
    port = free_port()
    async with client(whole, port) as http:
        answer = await http.get("/")
    assert (answer.status_code, answer.json()["detail"]["error"]) == (502, "ConnectionRefused")
    assert str(port) in answer.json()["detail"]["message"]


async def test_much_goes_through_whole(whole: Service) -> None:
    server = await asyncio.start_server(digest, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    body = bytes(range(256)) * 2**16 + b"odd"
    async with server, client(whole, port) as http:
        answers = await asyncio.gather(*(http.put("/x", content=body) for _ in range(3)))
    for answer in answers:
        assert answer.content[:64].decode() == hashlib.sha256(body).hexdigest()
        assert answer.content[64:] == bytes(len(body))


async def test_websockets(whole: Service) -> None:
    async def echo(connection: ServerConnection) -> None:
        assert connection.request is not None
        await connection.send(connection.request.headers["x-forwarded-proto"])
        async for message in connection:
            await connection.send(message)

    async with serve(echo, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        service = attrs.evolve(whole, token=whole.mint(port=port))
        url = f"{whole.ready.url.replace('http', 'ws')}/svc/{whole.id}/{port}/ws"
        headers = {"x-langsmith-sandbox-service-token": service.token}
        async with connect(url, additional_headers=headers) as socket:
            assert await socket.recv() == "http"
            for size in (0, 1, 70_000, 900_000):
                await socket.send(bytes(size))
                assert await socket.recv() == bytes(size)
        async with connect(url, additional_headers=headers) as socket:
            assert await socket.recv() == "http"
            await whole.server.registry.stop(whole.id)
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
