"""No bytes from either side make the server do anything but answer, or close."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_aio.server.serve import Server, ServerConfig
from tests.server.conftest import KEY
from tests.server.fakes import Daemon, FakeRuntime, RawClient
from tests.server.test_router import head

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REQUESTS = [
    head("GET", "/v2/sandboxes/one/download?path=x"),
    head("POST", "/v2/sandboxes/one/glob", "content-length: 5") + b"hello",
    head("POST", "/v2/sandboxes/one/grep", "transfer-encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n",
    head("GET", "/v2/sandboxes/one/execute/ws", "connection: upgrade", "upgrade: websocket") + b"\x81\x00",
    head("POST", "/v2/sandboxes/boxes", "content-length: 17") + b'{"name":"x","a":1',
    head("GET", "/v2/sandboxes/boxes?limit=%FF"),
    head("GET", "/healthz", "expect: 100-continue"),
]
ANSWERS = [
    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n\x81\x05hello",
]


@st.composite
def mangled(draw: st.DrawFn, good: list[bytes]) -> bytes:
    """One or two good messages with a few bytes removed, replaced or inserted."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(good), min_size=1, max_size=2))))
    for _ in range(draw(st.integers(0, 3))):
        position = draw(st.integers(0, len(data)))
        data[position : position + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(data)


@contextlib.asynccontextmanager
async def a_server(answer: bytes) -> AsyncIterator[tuple[str, FakeRuntime]]:
    runtime = FakeRuntime()
    with tempfile.TemporaryDirectory() as directory:
        server = Server(ServerConfig(state_dir=Path(directory), api_keys=(KEY,)), runtime)
        ready = await server.open()
        async with httpx.AsyncClient(base_url=ready.endpoint, headers={"x-api-key": KEY}) as http:
            box = (await http.post("/boxes", json={"name": "one"})).json()

        async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter, *__: object) -> None:
            writer.write(answer)
            await writer.drain()

        daemon: Daemon = runtime.daemons[box["id"]]
        daemon.answer = say
        yield ready.url, runtime
        await server.router.aclose(grace=0)
        await server.aclose()


async def exchange(request: bytes, answer: bytes) -> None:
    async with a_server(answer) as (url, _):
        async with RawClient.connect(url) as client:
            client.writer.write(request)
            reading = asyncio.create_task(client.reader.read())
            await asyncio.wait({reading}, timeout=0.02)  # Its end may be all that the server waits for.
            client.writer.write_eof()
            async with asyncio.timeout(10):
                with contextlib.suppress(ConnectionError):
                    await reading
        async with RawClient.connect(url) as client:  # It serves on.
            assert (await client.ask(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"))[2] == b"ok\n"


@pytest.mark.parametrize("side", ["client", "daemon"])
def test_hostile_bytes(side: str, caplog: pytest.LogCaptureFixture) -> None:
    @given(mangled(REQUESTS if side == "client" else ANSWERS), st.sampled_from(REQUESTS[:4]))
    @settings(max_examples=60)
    def check(data: bytes, request: bytes) -> None:
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            if side == "client":
                asyncio.run(exchange(data, ANSWERS[0]))
            else:
                asyncio.run(exchange(request, data))
        assert caplog.records == []

    check()
