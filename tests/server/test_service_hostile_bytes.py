"""Whatever bytes come from a client or a program: the program sees one well-formed request or a part of one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_aio.server.serve import Server, ServerConfig
from tests.server.conftest import KEY
from tests.server.fakes import FakeRuntime, RawClient
from tests.server.service import SeenRequest, Service, a_service, whole_request
from tests.server.test_hostile_bytes import ANSWERS, mangled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REQUESTS = [
    b"GET /a?b HTTP/1.1\r\nhost: HOST\r\nTOKEN\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: HOST\r\nTOKEN\r\ncontent-length: 5\r\nte: trailers\r\nconnection: te\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nhost: HOST\r\nTOKEN\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\na: b\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: HOST\r\nTOKEN\r\ncontent-length: 36\r\n\r\nGET /evil HTTP/1.1\r\nhost: evil\r\n\r\n\r\n",
    b"GET /ws HTTP/1.1\r\nhost: HOST\r\nTOKEN\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n\x81\x80\0\0\0\0",
    b"GET /_svc/auth?token=x&redirect=/y HTTP/1.1\r\nhost: HOST\r\ncookie: sandbox_aio_service=x; a=b\r\n\r\n",
]


@contextlib.asynccontextmanager
async def serving(answer: bytes) -> AsyncIterator[Service]:
    runtime = FakeRuntime()
    with tempfile.TemporaryDirectory() as directory:
        server = Server(ServerConfig(state_dir=Path(directory), api_keys=(KEY,)), runtime)
        ready = await server.open()
        service = await a_service(server, ready, runtime, KEY)
        service.app.answer = answer
        yield service
        await server.router.aclose(grace=0)
        await server.aclose()


async def exchange(request: bytes, answer: bytes) -> None:
    async with serving(answer) as service:
        token = f"x-langsmith-sandbox-service-token: {service.token}"
        request = request.replace(b"HOST", service.host.encode()).replace(b"TOKEN", token.encode())
        async with service.connect() as client:
            client.writer.write(request)
            reading = asyncio.create_task(client.reader.read())
            await asyncio.wait({reading}, timeout=0.02)  # Its end may be all that the server waits for.
            client.writer.write_eof()
            async with asyncio.timeout(10):
                with contextlib.suppress(ConnectionError):
                    await reading
        async with RawClient.connect(service.ready.url) as client:  # It serves on.
            assert (await client.ask(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"))[2] == b"ok\n"
    for seen in service.app.connections:
        if b"\r\nupgrade: websocket\r\n" not in seen and whole_request(seen):
            assert SeenRequest.parse(seen).target != "/evil"
        assert service.token.encode() not in seen.partition(b"\r\n\r\n")[0]


@pytest.mark.parametrize("side", ["client", "program"])
def test_hostile_bytes(side: str, caplog: pytest.LogCaptureFixture) -> None:
    @given(mangled(REQUESTS if side == "client" else ANSWERS), st.sampled_from(REQUESTS[:5]))
    @settings(max_examples=80)
    def check(data: bytes, request: bytes) -> None:
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            if side == "client":
                asyncio.run(exchange(data, ANSWERS[0]))
            else:
                asyncio.run(exchange(request, data))
        assert caplog.records == []

    check()
