"""The HTTP driver against a server that misbehaves: retries, bounds, typed errors, nothing left."""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import pytest
from anyio.streams.tls import TLSStream

from sandbox_aio.drivers.http import HttpDriver
from sandbox_aio.errors import (
    ClientClosedError,
    ForkedClientError,
    RemoteProtocolError,
    RequestTimeoutError,
    SandboxClientError,
    SandboxConnectionError,
)
from sandbox_aio.protocol.http_call import HttpCall, HttpResponse, Resend
from tests.client.fake_service import FakeService, Handler, Reply, Request, error, fake_service

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio


def call(service: FakeService | str, method: str = "GET", **changes: Any) -> HttpCall[HttpResponse]:
    url = service if isinstance(service, str) else f"{service.url}/x?secret=1"
    arguments: dict[str, Any] = {"method": method, "url": url, "read": lambda response: response, "timeout": 5}
    return HttpCall(**(arguments | changes))


def in_turn(*replies: Reply) -> Handler:
    """Answer with one reply after the other; the last one stays."""
    left = list(replies)

    async def handler(request: Request) -> Reply:
        return left.pop(0) if len(left) > 1 else left[0]

    return handler


@asynccontextmanager
async def driver(**options: Any) -> AsyncGenerator[HttpDriver]:
    """A driver that is closed at the end."""
    made = HttpDriver(headers={"x-api-key": "k"}, **({"max_retries": 3} | options))
    try:
        yield made
    finally:
        await made.pool.aclose()


SOON = {"retry-after": "0"}


async def test_a_request_carries_what_the_call_says() -> None:
    async with fake_service(in_turn(Reply(status=201, headers={"X-A": "1"}, body=b"abc"))) as service, driver() as http:
        sent = call(service, "POST", body=b"in", headers={"content-type": "text/x"})
        answer = await http.call(sent, {"X-Api-Key": "other", "B": "2", "Content-Type": "overridden"})
        assert (answer.status, answer.body, answer.headers["x-a"]) == (201, b"abc", "1")
        (request,) = service.requests
        assert (request.method, request.target, request.body) == ("POST", "/x?secret=1", b"in")
        headers = {name: request.headers.get(name) for name in ("x-api-key", "b", "content-type", "accept")}
        assert headers == {"x-api-key": "other", "b": "2", "content-type": "text/x", "accept": "*/*"}
        assert request.headers["accept-encoding"] == "identity"


async def test_connections_are_kept_for_the_next_call() -> None:
    async with fake_service(in_turn(Reply())) as service, driver() as http:
        for _ in range(5):
            await http.call(call(service))
        assert service.connections == 1
    assert service.open == 0


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_busy_server_is_asked_again(status: int) -> None:
    async with (
        fake_service(in_turn(error(status, **SOON), error(status, **SOON), Reply())) as service,
        driver() as http,
    ):
        answer = await http.call(call(service))
        assert answer.status == 200
        assert answer.sent_before is (status in (502, 504))
        assert len(service.requests) == 3


async def test_in_the_end_the_answer_is_what_it_is() -> None:
    async with fake_service(in_turn(error(503, **SOON))) as service, driver(max_retries=1) as http:
        assert (await http.call(call(service))).status == 503
        assert len(service.requests) == 2


@pytest.mark.parametrize("reply", [Reply(raw=b""), Reply(body=b"abcdef", cut_after=3)])
async def test_a_cut_connection_is_made_again_where_that_is_harmless(reply: Reply) -> None:
    async with fake_service(in_turn(reply, Reply(body=b"whole"))) as service, driver() as http:
        answer = await http.call(call(service))
        assert (answer.body, answer.sent_before) == (b"whole", True)


@pytest.mark.parametrize("reply", [Reply(raw=b""), Reply(body=b"abcdef", cut_after=3)])
async def test_a_cut_connection_is_an_error_where_another_try_could_do_harm(reply: Reply) -> None:
    async with fake_service(in_turn(reply)) as service, driver() as http:
        with pytest.raises(SandboxConnectionError, match=r"POST http://127.0.0.1:\d+/x was cut off"):
            await http.call(call(service, "POST", resend=Resend.IF_REFUSED))
        assert len(service.requests) == 1


async def test_a_connection_that_went_stale_is_replaced() -> None:
    """The server closes an idle connection just as it is used again."""
    first = Reply(headers={"connection": "keep-alive"})

    async def handler(request: Request) -> Reply:
        return first if request.connection else Reply(raw=b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    async with fake_service(handler) as service, driver() as http:
        await http.call(call(service))
        await http.call(call(service))
        assert service.connections == 2


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def test_a_server_that_is_not_there() -> None:
    url = f"http://127.0.0.1:{unused_port()}/x"
    async with driver(max_retries=1) as http:
        with pytest.raises(SandboxConnectionError, match=r"could not connect to .*that the server runs"):
            await http.call(call(url, "POST", resend=Resend.IF_REFUSED))


@pytest.mark.parametrize("silent_after", [None, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab"])
async def test_a_server_that_never_answers(silent_after: bytes | None) -> None:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            if silent_after is not None:
                await stream.send(silent_after)
            await anyio.sleep_forever()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with driver() as http:
            with (
                anyio.fail_after(5),
                pytest.raises(RequestTimeoutError, match=r"within 0\.2 s") as error,
            ):
                await http.call(call(f"http://127.0.0.1:{port}/x", timeout=0.2))
            assert error.value.timeout == 0.2
        tasks.cancel_scope.cancel()


async def test_a_server_that_drips_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox_aio.drivers.http.CONNECT_SECONDS", 0.1)

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
            while True:
                await stream.send(b"x")
                await anyio.sleep(0.05)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with driver() as http:
            with anyio.fail_after(5), pytest.raises(RequestTimeoutError):
                await http.call(call(f"http://127.0.0.1:{port}/x", timeout=0.2))
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("garbage", [b"SSH-2.0-x\r\n\r\n", b"\x00" * 100, b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n"])
async def test_garbage_is_said_to_be_garbage_at_once(garbage: bytes) -> None:
    async with fake_service(in_turn(Reply(raw=garbage))) as service, driver() as http:
        with pytest.raises(RemoteProtocolError, match="does not speak HTTP as it should"):
            await http.call(call(service))
        assert len(service.requests) == 1


async def test_an_answer_without_end_is_cut_off() -> None:
    async with fake_service(in_turn(Reply(body=b"x" * 100_000))) as service, driver() as http:
        with pytest.raises(RemoteProtocolError, match="longer than 10 bytes"):
            await http.call(call(service, max_body_bytes=10))
        assert (await http.call(call(service, max_body_bytes=None))).body == b"x" * 100_000


async def test_redirects_and_cookies_are_not_followed() -> None:
    reply = Reply(status=302, headers={"location": "/elsewhere", "set-cookie": "a=b"})
    async with fake_service(in_turn(reply)) as service, driver() as http:
        assert (await http.call(call(service))).status == 302
        await http.call(call(service))
        assert [request.headers.get("cookie") for request in service.requests] == [None, None]


async def test_an_address_that_cannot_be_asked() -> None:
    async with driver() as http:
        with pytest.raises(SandboxClientError, match="could not be sent"):
            await http.call(call("ftp://127.0.0.1/x"))
        with pytest.raises(SandboxClientError, match="could not be sent"):
            await http.call(call("http://127.0.0.1:notaport/x"))


async def test_a_certificate_that_nobody_signed_is_not_tried_again() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(Path(__file__).parent.parent / "server" / "localhost.pem")
    tried = 0

    async def serve(stream: anyio.abc.SocketStream) -> None:
        nonlocal tried
        tried += 1
        async with stream:
            with suppress(ssl.SSLError, anyio.BrokenResourceError, anyio.EndOfStream):
                await TLSStream.wrap(stream, server_side=True, ssl_context=context)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with driver() as http:
            with pytest.raises(SandboxConnectionError, match=r"certificate of https://localhost:.* is not trusted"):
                await http.call(call(f"https://localhost:{port}/x"))
            assert http.pool.ssl_context is http.pool.ssl_context
        tasks.cancel_scope.cancel()
    assert tried == 1


async def test_after_closing_it_says_so() -> None:
    async with fake_service(in_turn(Reply())) as service, driver() as http:
        await http.call(call(service))
        await http.pool.aclose()
        await http.pool.aclose()
        with pytest.raises(ClientClosedError, match="make a new one"):
            await http.call(call(service))


async def test_closing_ends_what_is_under_way() -> None:
    entered = anyio.Event()

    async def handler(request: Request) -> Reply:
        entered.set()
        await anyio.sleep_forever()
        return Reply()

    async with fake_service(handler) as service, driver() as http, anyio.create_task_group() as tasks:

        async def doomed() -> None:
            with pytest.raises((ClientClosedError, SandboxConnectionError)):
                await http.call(call(service))

        tasks.start_soon(doomed)
        await entered.wait()
        await http.pool.aclose()


async def test_cancelling_closes_the_connection_and_leaves_the_driver_usable() -> None:
    entered = anyio.Event()

    async def handler(request: Request) -> Reply:
        if request.method == "GET":
            entered.set()
            await anyio.sleep_forever()
        return Reply()

    async with fake_service(handler) as service, driver() as http:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(http.call, call(service))
            await entered.wait()
            tasks.cancel_scope.cancel()
        assert (await http.call(call(service, "POST"))).status == 200
        assert service.connections == 2


async def test_a_fork_is_noticed() -> None:
    async with driver() as http:
        http.pool._pid = os.getpid() + 1
        with pytest.raises(ForkedClientError, match="make a new one in each process"):
            http.pool.check_usable()
        http.pool._pid = os.getpid()
