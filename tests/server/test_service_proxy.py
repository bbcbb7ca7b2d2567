"""The reverse proxy to a port of a sandbox: what arrives there, and what comes back."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import httpx
import pytest

from sandbox_aio.server import forward as forward_module
from sandbox_aio.server import relay as relay_module
from sandbox_aio.server import router as router_module
from tests.server.conftest import KEY
from tests.server.service import PORT, Service

if TYPE_CHECKING:
    from sandbox_aio.server.serve import Server
    from tests.server.fakes import FakeRuntime

pytestmark = pytest.mark.anyio


async def test_the_host_form(service: Service) -> None:
    async with service.connect() as client:
        head = service.head(
            "POST",
            "/a%2Fb//c/../d?x=%20&y",
            "content-length: 5",
            "cookie: mine=1; sandbox_aio_service=x; b",
            "accept: a/b",
        )
        status, headers, body = await client.ask(head + b"hello", method=b"POST")
        assert (status, body) == (200, b"ok")
        assert headers["content-security-policy"] == "frame-ancestors 'self'"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "connection" not in headers
        assert (await client.ask(service.head()))[0] == 200  # The client's connection goes on.
    request, second = service.app.requests()
    assert (request.method, request.target, request.body) == ("POST", "/a%2Fb//c/../d?x=%20&y", b"hello")
    assert request.header("host") == service.host
    assert request.header("cookie") == "mine=1; b"
    assert request.header("accept") == "a/b"
    assert request.header("connection") == "close"
    assert request.header("x-langsmith-sandbox-service-token") is None
    assert request.header("x-forwarded-for") == "127.0.0.1"
    assert request.header("x-forwarded-proto") == "http"
    assert request.header("x-forwarded-host") == service.host
    assert request.header("x-forwarded-prefix") is None
    assert request.header("forwarded") == f'for=127.0.0.1;host="{service.host}";proto=http'
    assert second.target == "/"


async def test_the_path_form(service: Service) -> None:
    service.app.answer = (
        b"HTTP/1.1 302 Found\r\nlocation: /login\r\nset-cookie: a=b\r\nclear-site-data: *\r\ncontent-length: 0\r\n"
        b"strict-transport-security: max-age=1\r\ncontent-security-policy: default-src 'self'\r\n\r\n"
    )
    async with httpx.AsyncClient(base_url=service.ready.url) as http:
        answer = await http.get(f"{service.prefix}/x?y=z", headers={"x-langsmith-sandbox-service-token": service.token})
        assert (answer.status_code, answer.headers["location"]) == (302, f"{service.prefix}/login")
        assert answer.headers.get_list("content-security-policy") == ["default-src 'self'", "sandbox"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not {"set-cookie", "clear-site-data", "strict-transport-security"} & answer.headers.keys()
        (request,) = service.app.requests()
        assert (request.target, request.header("host")) == ("/x?y=z", f"localhost:{PORT}")
        assert request.header("x-forwarded-prefix") == service.prefix
        cookie = {"cookie": f"sandbox_aio_service={service.token}"}
        assert (await http.get(f"{service.prefix}/", headers=cookie)).status_code == 401
        assert (await http.get(f"{service.prefix}/", headers={"x-api-key": KEY})).status_code == 401
        slash = await http.get(f"{service.prefix}?a=b")
        assert (slash.status_code, slash.headers["location"]) == (308, f"{service.prefix}/?a=b")
        for path in (
            f"/svc/{service.id}/0/",
            f"/svc/{service.id}/65536/",
            "/svc/one/8000/",
            f"/svc/{service.id}/08000/",
        ):
            answer = await http.get(
                path, headers={"x-langsmith-sandbox-service-token": service.token, "x-api-key": KEY}
            )
            assert answer.status_code == 404
    assert len(service.app.connections) == 1


async def test_nothing_else_is_served_on_the_host_of_a_service(service: Service, runtime: FakeRuntime) -> None:
    for path in ("/healthz", "/api/v2/sandboxes/boxes", "/v2/sandboxes/one/download?path=x", "/.well-known/jwks.json"):
        assert (await service.get(path, f"x-api-key: {KEY}", token=None))[0] == 401
        assert (await service.get(path))[2] == b"ok"
    assert service.app.requests()[0].target == "/healthz"
    calls = list(runtime.calls)
    for name in (
        f"x{service.id}--{PORT}",
        f"{service.id}--0",
        f"{service.id}--99999",
        "a--b",
        f"a.{service.id}--{PORT}",
    ):
        async with service.connect() as client:
            head = f"GET /v2/sandboxes/boxes HTTP/1.1\r\nhost: {name}.localhost\r\nx-api-key: {KEY}\r\n\r\n"
            assert (await client.ask(head.encode()))[0] == 404
    assert runtime.calls == calls


async def test_a_host_may_be_written_in_other_ways(service: Service) -> None:
    token = f"x-langsmith-sandbox-service-token: {service.token}\r\n\r\n"
    for host in (f"{service.id.upper()}--{PORT}.LocalHost:1", f"{service.id}--{PORT}.localhost.", service.host):
        async with service.connect() as client:
            assert (await client.ask(f"GET / HTTP/1.1\r\nhost: {host}\r\n{token}".encode()))[2] == b"ok"
        async with service.connect() as client:
            target = f"http://{host}/x"
            assert (await client.ask(f"GET {target} HTTP/1.1\r\nhost: {host}\r\n{token}".encode()))[2] == b"ok"
        async with service.connect() as client:  # A target that names the service, and a Host that is the server's.
            assert (await client.ask(f"GET {target} HTTP/1.1\r\nhost: localhost\r\n{token}".encode()))[0] == 400


async def test_bodies_stream_in_both_directions_at_once(service: Service) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while size := int(await reader.readline(), 16):
            data = await reader.readexactly(size + 2)
            writer.write(b"%x\r\n%b" % (size, data))
        writer.write(b"0\r\n\r\n")

    service.daemon.apps[PORT] = echo
    async with service.connect() as client:
        client.writer.write(service.head("POST", "/", "transfer-encoding: chunked"))
        for number in range(20):
            client.writer.write(b"5\r\nhel%02d\r\n" % number)
            async with asyncio.timeout(5):
                assert (await client.reader.readuntil(b"hel%02d\r\n" % number))[-7:] == b"hel%02d\r\n" % number
        client.writer.write(b"0\r\n\r\n")
        assert await client.reader.readuntil(b"0\r\n\r\n") == b"0\r\n\r\n"


async def test_a_large_upload_is_held_back_by_a_program_that_does_not_read(service: Service) -> None:
    go_on = asyncio.Event()
    received = 0

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        await reader.readuntil(b"\r\n\r\n")
        await go_on.wait()
        while received < 64 * 2**20:
            received += len(await reader.read(2**20))
        writer.write(b"HTTP/1.1 204 No Content\r\ncontent-length: 7\r\n\r\n")

    service.daemon.apps[PORT] = app
    async with service.connect() as client:
        client.writer.write(service.head("PUT", "/", f"content-length: {64 * 2**20}"))
        piece = bytes(2**20)
        sent = 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    client.writer.write(piece)
                    await client.writer.drain()
                    sent += len(piece)
        assert sent < 32 * 2**20
        go_on.set()
        client.writer.write(bytes(64 * 2**20 - sent - len(piece)))
        status, headers, _ = await client.answer(method=b"PUT")
        assert (status, headers.get("content-length"), received) == (204, None, 64 * 2**20)


async def test_server_sent_events_are_not_kept_back(service: Service) -> None:
    said = asyncio.Event()

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")  # Framed by its end.
        for number in range(3):
            writer.write(b"data: %d\n\n" % number)
            await said.wait()
            said.clear()

    service.daemon.apps[PORT] = app
    async with httpx.AsyncClient() as http:
        headers = {"host": service.host, "x-langsmith-sandbox-service-token": service.token}
        async with http.stream("GET", service.ready.url, headers=headers, timeout=5) as answer:
            events = answer.aiter_raw()
            for number in range(3):
                assert await anext(events) == b"data: %d\n\n" % number
                said.set()
            assert [data async for data in events] == []


async def test_expect_is_the_programs_to_answer(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"\r\nexpect: 100-continue\r\n" in head
        if b"/refused" in head:
            writer.write(b"HTTP/1.1 417 No\r\ncontent-length: 0\r\n\r\n")
            return
        if b"/asked" in head:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n" + await reader.readexactly(5))

    service.daemon.apps[PORT] = app
    expecting = ("content-length: 5", "expect: 100-continue")
    async with service.connect() as client:
        status, headers, _ = await client.ask(service.head("POST", "/refused", *expecting))
        assert (status, headers["connection"]) == (417, "close")
    monkeypatch.setattr(relay_module, "EXPECT_PATIENCE", 0.05)
    for path in ("/asked", "/silent"):
        async with service.connect() as client:
            client.writer.write(service.head("POST", path, *expecting))
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 \r\n\r\n"
            assert (await client.ask(b"hello"))[2] == b"hello"


@pytest.mark.parametrize(
    ("method", "answer", "status", "length", "body"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 77\r\n\r\n", 200, "77", b""),
        (b"HEAD", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", 200, None, b""),
        (b"GET", b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n", 204, None, b""),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", 304, "9", b""),
        (b"GET", b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", 200, "2", b"ok"),
        (b"GET", b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 103 H\r\nlink: x\r\n\r\nHTTP/1.1 205 R\r\ncontent-length: 0\r\n\r\n",
         205, "0", b""),
        (b"GET", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\n\r\n", 200, None, b"ok"),
        (b"GET", b"HTTP/1.1 599 Odd\r\ncontent-length: 2\r\n\r\nok and more", 599, "2", b"ok"),
    ],
)  # fmt: skip
async def test_answers_keep_the_connection_in_step(
    service: Service, method: bytes, answer: bytes, status: int, length: str | None, body: bytes
) -> None:
    service.app.answer = answer
    async with service.connect() as client:
        for _ in range(2):
            got = await client.ask(service.head(method.decode()), method=method)
            assert (got[0], got[1].get("content-length"), got[2]) == (status, length, body)


async def test_trailers_cross(service: Service) -> None:
    service.app.answer = (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n"
        b"2\r\nok\r\n0\r\nx-sum: 1\r\nset-cookie: a=b\r\ncontent-length: 5\r\n\r\n"
    )
    async with service.connect() as client:
        head = service.head("POST", "/", "transfer-encoding: chunked", "te: trailers", "connection: te", "trailer: x-a")
        client.writer.write(head + b"2\r\nhi\r\n0\r\nx-a: b\r\nx-forwarded-for: 1.2.3.4\r\nhost: evil\r\n\r\n")
        assert (await client.reader.readuntil(b"\r\n0\r\n")).endswith(b"2\r\nok\r\n0\r\n")
        assert (await client.reader.readuntil(b"\r\n\r\n")).lower() == b"x-sum: 1\r\n\r\n"
        assert (await client.ask(service.head(), method=b"GET"))[2] == b"ok"
    first, _ = service.app.requests()
    assert (first.body, first.trailers) == (b"hi", [("x-a", "b")])
    assert (first.header("te"), first.header("connection")) == ("trailers", "close, TE")


async def test_interim_answers_reach_the_client(service: Service) -> None:
    service.app.answer = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nx: y\r\n\r\n" + service.app.answer
    async with service.connect() as client:
        client.writer.write(service.head())
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 103 \r\nlink: </a>\r\n\r\n"
        assert (await client.answer())[2] == b"ok"


async def test_a_websocket_is_spliced(service: Service) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"\r\nupgrade: websocket\r\n" in head
        assert b"\r\nsec-websocket-key: abc\r\n" in head
        assert b"\r\nsec-websocket-extensions: x\r\n" in head
        assert b"service-token" not in head
        writer.write(
            b"HTTP/1.1 101 S\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: d\r\n\r\n\x82\x02hi"
        )
        writer.write(await reader.read())
        writer.write(b"\x82\x01.")

    service.daemon.apps[PORT] = app
    async with service.connect() as client:
        extra = (
            "connection: keep-alive, Upgrade",
            "upgrade: WebSocket",
            "sec-websocket-key: abc",
            "sec-websocket-extensions: x",
        )
        status, headers, _ = await client.ask(service.head("GET", "/ws", *extra, "origin: http://elsewhere"))
        assert (status, headers["sec-websocket-accept"]) == (101, "d")
        client.writer.write(bytes(range(256)))
        client.writer.write_eof()
        async with asyncio.timeout(5):
            rest = await client.reader.read()
        assert rest.endswith(bytes(range(256)) + b"\x82\x01.")


@pytest.mark.parametrize("end", ["stop", "delete", "shutdown"])
async def test_a_sandbox_takes_its_services_along(service: Service, server: Server, end: str) -> None:
    """A websocket gets a close frame at a frame boundary; an answer that has begun is broken off, not ended."""

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/ws" in head:
            writer.write(b"HTTP/1.1 101 S\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\r\n\x81\x02hi")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nbegun")
        await reader.read()

    service.daemon.apps[PORT] = app
    async with service.connect() as socket, service.connect() as stream:
        await socket.ask(service.head("GET", "/ws", "connection: upgrade", "upgrade: websocket"))
        stream.writer.write(service.head())
        await stream.reader.readuntil(b"begun\r\n")
        if end == "shutdown":
            await server.router.aclose(grace=0)
        else:
            action = server.registry.stop if end == "stop" else server.registry.delete
            await action(service.id)
        code = b"\x03\xe8" if end == "delete" else b"\x03\xe9"
        async with asyncio.timeout(5):
            if end != "shutdown":  # With no grace, nothing is promised.
                assert (await socket.reader.read()).endswith(b"\x88\x02" + code)
            try:
                assert b"0\r\n\r\n" not in await stream.reader.read()
            except ConnectionError:
                pass
    assert not server.router._exchanges


async def test_a_stopped_sandbox_is_woken(service: Service, server: Server, runtime: FakeRuntime) -> None:
    await server.registry.stop(service.id)
    assert (await service.get())[2] == b"ok"
    assert [call for call, _ in runtime.calls].count("start") == 2


async def test_what_is_said_when_there_is_no_answer(service: Service, server: Server, runtime: FakeRuntime) -> None:
    other = service.mint(port=1)
    async with httpx.AsyncClient() as http:
        headers = {"host": service.host.replace(f"--{PORT}", "--1"), "x-langsmith-sandbox-service-token": other}
        answer = await http.get(service.ready.url, headers=headers)
        assert (answer.status_code, answer.json()["detail"]["error"]) == (502, "ConnectionRefused")
        page = await http.get(service.ready.url, headers={**headers, "accept": "text/html, */*"})
        assert (page.status_code, page.headers["content-type"]) == (502, "text/html; charset=utf-8")
        assert "Nothing listens on this port" in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert page.headers["cache-control"] == "no-store"
        headers = {"host": service.host, "x-langsmith-sandbox-service-token": service.token}
        runtime.on_exit(service.id, "it broke <b>down</b>")
        page = await http.get(service.ready.url, headers={**headers, "accept": "text/html"})
        assert page.status_code == 503
        assert "it broke &lt;b&gt;down&lt;/b&gt;" in page.text
        await server.registry.delete(service.id)
        assert (await http.get(service.ready.url, headers=headers)).json()["detail"]["error"] == "SandboxNotFound"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "ConnectionError"),
        (b"garbage\r\n\r\n", "ConnectionError"),
        (b"HTTP/1.1 502 B\r\ncontent-length: 9\r\n\r\n{}", "ConnectionError"),
        (b"HTTP/1.1 502 B\r\ncontent-length: 2\r\n\r\n{}", "ConnectionError"),
        (b"HTTP/1.1 502 B\r\n\r\n" + bytes(2**18), "ConnectionError"),
        (b'HTTP/1.1 502 B\r\n\r\n{"detail":{"error":"a b","message":"x\\ny"}}', "ConnectionError"),
        (b'HTTP/1.1 502 B\r\n\r\n{"detail":{"error":"Odd","message":"x\\ny"}}', "Odd"),
        (b"HTTP/1.1 101 S\r\nupgrade: tcp\r\nconnection: upgrade\r\n\r\n", "ConnectionError"),
        (b"HTTP/1.1 100 C\r\n\r\n", "ConnectionError"),
    ],
)
async def test_a_daemon_that_does_not_connect_is_502(service: Service, answer: bytes, error: str) -> None:
    async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter, *__: object) -> None:
        writer.write(answer)
        await writer.drain()

    service.daemon.answer = say
    status, _, body = await service.get()
    detail = json.loads(body)["detail"]
    assert (status, detail["error"]) == (502, error)
    assert detail["message"].isprintable()


async def test_a_daemon_that_does_not_answer_is_not_waited_for(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(reader: asyncio.StreamReader, *_: object) -> None:
        await reader.read()

    service.daemon.answer = hang
    monkeypatch.setattr(forward_module, "PORT_PATIENCE", 0)
    monkeypatch.setattr(forward_module, "CONNECT_TIMEOUT", 0.05)
    assert (await service.get())[0] == 502


async def test_a_service_that_is_asked_too_much(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asyncio.Event()

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()

    service.daemon.apps[PORT] = app
    monkeypatch.setattr(router_module, "MAX_SERVICE_EXCHANGES", 1)
    async with service.connect() as client:
        client.writer.write(service.head())
        await asyncio.wait_for(asked.wait(), 5)
        status, headers, body = await service.get()
        assert (status, headers["retry-after"]) == (503, "1")
        assert json.loads(body)["detail"]["error"] == "ServiceUnavailable"


async def test_a_client_that_leaves_takes_its_request_along(service: Service) -> None:
    asked = asyncio.Event()

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()

    service.daemon.apps[PORT] = app
    async with service.connect() as client:
        client.writer.write(service.head())
        await asyncio.wait_for(asked.wait(), 5)
        service.daemon.lost.clear()
    await asyncio.wait_for(service.daemon.lost.wait(), 5)
