"""The public listener: framing, authentication, and what reaches a daemon."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from typing import TYPE_CHECKING, Any

import h11
import httpx
import pytest

from sandbox_aio.server import asgi as asgi_module
from sandbox_aio.server import forward as forward_module
from sandbox_aio.server import request_reading
from sandbox_aio.server.auth import Gate
from sandbox_aio.server.router import Router
from tests.server.conftest import KEY
from tests.server.fakes import Daemon, FakeRuntime, RawClient, next_event

if TYPE_CHECKING:
    from sandbox_aio.server.serve import Ready, Server

pytestmark = pytest.mark.anyio

AUTH = f"x-api-key: {KEY}\r\n".encode()


@pytest.fixture
async def daemon(http: httpx.AsyncClient, runtime: FakeRuntime) -> Daemon:
    box = (await http.post("/boxes", json={"name": "one"})).json()
    return runtime.daemons[box["id"]]


def head(method: str, path: str, *headers: str, key: str | None = KEY) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: server", *headers]
    if key is not None:
        lines.append(f"x-api-key: {key}")
    return "\r\n".join([*lines, "", ""]).encode()


async def test_one_connection_serves_several_sandboxes_and_the_control_plane(
    http: httpx.AsyncClient, runtime: FakeRuntime, ready: Ready
) -> None:
    names = [(await http.post("/boxes", json={"name": name})).json()["name"] for name in ("one", "two", "three")]
    async with RawClient.connect(ready.url) as client:
        for base in ("/api/v2/sandboxes", "/v2/sandboxes"):
            for name in names:
                _, _, body = await client.ask(head("GET", f"{base}/{name}/download?path=%2Fa+b"))
                assert body == f"{name} GET /download?path=%2Fa+b".encode()
                status, _, body = await client.ask(head("GET", f"{base}/boxes/{name}"))
                assert (status, json.loads(body)["name"]) == (200, name)
                status, _, _ = await client.ask(head("GET", f"{base}/{name}/download", key="wrong"))
                assert status == 401
        pipelined = b"".join(head("GET", f"/v2/sandboxes/{name}/download?path={name}") for name in names)
        client.writer.write(pipelined)
        connection = h11.Connection(h11.CLIENT)
        for name in names:
            connection.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
            connection.send(h11.EndOfMessage())
            body = b""
            while not isinstance(event := await next_event(connection, client.reader), h11.EndOfMessage):
                body += event.data if isinstance(event, h11.Data) else b""
            assert body == f"{name} GET /download?path={name}".encode()
            connection.start_next_cycle()


async def test_a_sandbox_is_addressed_by_id_too(http: httpx.AsyncClient, daemon: Daemon) -> None:
    answer = await http.get(f"/{daemon.spec.id}/download?path=x")
    assert answer.text == "one GET /download?path=x"


async def test_a_daemon_sees_its_secret_and_no_credentials(http: httpx.AsyncClient, daemon: Daemon) -> None:
    answer = await http.post(
        "/one/glob",
        json={"pattern": "*"},
        headers={
            "authorization": "Bearer other",
            "cookie": "c=d",
            "x-sandbox-secret": "guess",
            "x-service-key": "s",
            "proxy-authorization": "p",
            "te": "trailers",
            "connection": "keep-alive, x-secret-option",
            "x-secret-option": "1",
            "range": "bytes=0-1",
        },
    )
    assert answer.status_code == 200
    (seen,) = daemon.requests
    assert (seen.method, seen.target, json.loads(seen.body)) == ("POST", "/glob", {"pattern": "*"})
    assert seen.headers["x-sandbox-secret"] == daemon.spec.secret
    assert seen.headers["range"] == "bytes=0-1"
    assert seen.headers.keys() <= {
        "host", "x-sandbox-secret", "connection", "content-type", "content-length", "accept", "user-agent", "range"
    }  # fmt: skip
    assert "set-cookie" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"x-api-key": ""}, 401),
        ({"x-api-key": KEY + "x"}, 401),
        ({"authorization": "Basic " + KEY}, 401),
        ({"x-api-key": "wrong", "authorization": "Bearer " + KEY}, 401),
        ({"authorization": "Bearer " + KEY}, 200),
        ({"authorization": "bearer another"}, 200),
        ({"X-API-Key": "another"}, 200),
    ],
)
async def test_keys(ready: Ready, daemon: Daemon, headers: dict[str, str], status: int) -> None:
    async with httpx.AsyncClient(base_url=ready.endpoint, headers=headers) as client:
        for path in ("/boxes", "/one/download?path=x", "/boxes/one"):
            answer = await client.get(path)
            assert answer.status_code == status
            if status == 401:
                assert answer.json()["detail"]["error"] == "Unauthorized"
        if status == 401:
            unknown = await client.get("/boxes/unknown")
            assert unknown.status_code == 401


async def test_health_needs_no_key(ready: Ready) -> None:
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{ready.url}/healthz")).text == "ok\n"
        assert (await client.head(f"{ready.url}/healthz")).status_code == 200


@pytest.mark.parametrize(
    "path", ["/unknown/execute", "/one/nothing", "/one/healthz", "/one/connect?port=80", "/one/..%2Fboxes", "/one/"]
)
async def test_nobodys_paths_are_404_and_wake_nothing(
    http: httpx.AsyncClient, runtime: FakeRuntime, daemon: Daemon, path: str
) -> None:
    await http.post("/boxes/one/stop")
    answer = await http.post(path, content=b"{}")
    assert answer.status_code == 404
    assert answer.json()["detail"]["error"] in ("NotFound", "SandboxNotFound")
    assert runtime.calls[-1][0] == "stop"


async def test_a_request_wakes_a_stopped_sandbox_and_is_held(
    http: httpx.AsyncClient, runtime: FakeRuntime, daemon: Daemon
) -> None:
    await http.post("/boxes/one/stop")
    runtime.gate.clear()
    asked = [asyncio.create_task(http.get("/one/download?path=x")) for _ in range(3)]
    while (await http.get("/boxes/one/status")).json()["status"] != "provisioning":
        await asyncio.sleep(0.001)
    runtime.gate.set()
    assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200, 200, 200]
    assert [call for call, _ in runtime.calls].count("start") == 2


async def test_a_failed_sandbox_is_not_ready(http: httpx.AsyncClient, runtime: FakeRuntime, daemon: Daemon) -> None:
    runtime.on_exit(daemon.spec.id, "out of memory")
    answer = await http.get("/one/download?path=x")
    assert (answer.status_code, answer.json()["detail"]["error"]) == (400, "NotReady")
    assert "out of memory" in answer.json()["detail"]["message"]


async def test_a_daemon_that_is_not_there_is_502(http: httpx.AsyncClient, daemon: Daemon) -> None:
    await daemon.close()
    answer = await http.get("/one/download?path=x")
    assert (answer.status_code, answer.json()["detail"]["error"]) == (502, "ConnectionError")


async def test_a_daemon_with_a_full_backlog_is_waited_for(
    http: httpx.AsyncClient, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    await daemon.close()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(daemon.path)
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(daemon.path)
            monkeypatch.setattr(forward_module, "CONNECT_TIMEOUT", 0.05)
            refused = await http.get("/one/download?path=x")
            assert (refused.status_code, refused.json()["detail"]["error"]) == (502, "ConnectionError")
            monkeypatch.setattr(forward_module, "CONNECT_TIMEOUT", 5)
            asked = asyncio.create_task(http.get("/one/download?path=x"))
            await asyncio.wait({asked}, timeout=0.05)
            listener.accept()[0].close()
            accepted, _ = await asyncio.to_thread(listener.accept)
            with accepted:
                accepted.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                assert (await asked).text == "ok"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 2**17,
    ],
)
async def test_a_daemon_that_answers_nonsense_is_502(http: httpx.AsyncClient, daemon: Daemon, raw: bytes) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, *__: object) -> None:
        writer.write(raw)
        await writer.drain()

    daemon.answer = answer
    assert (await http.get("/one/download?path=x")).json()["detail"]["error"] == "ConnectionError"


async def test_a_broken_off_answer_is_not_ended_as_if_whole(http: httpx.AsyncClient, daemon: Daemon) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, *__: object) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await writer.drain()

    daemon.answer = answer
    with pytest.raises(httpx.RemoteProtocolError):
        await http.get("/one/download?path=x")


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        ("POST /v2/sandboxes/one/glob HTTP/1.1|host: x|content-length: 5|transfer-encoding: chunked", 400),
        ("POST /v2/sandboxes/one/glob HTTP/1.1|host: x|content-length: 5|content-length: 6", 400),
        ("POST /v2/sandboxes/one/glob HTTP/1.1|host: x|content-length: 5, 6", 400),
        ("POST /v2/sandboxes/one/glob HTTP/1.1|host: x|content-length: +5", 400),
        ("POST /v2/sandboxes/one/glob HTTP/1.1|host: x|transfer-encoding: chunked, identity", 501),
        ("POST /v2/sandboxes/one/glob HTTP/1.1|host: x|transfer-encoding: xchunked", 501),
        ("POST /v2/sandboxes/one/glob HTTP/1.1|host: x|transfer-encoding : chunked", 400),
        ("POST /v2/sandboxes/one/glob HTTP/1.0|host: x|transfer-encoding: chunked", 400),
        ("GET /v2/sandboxes/one/download HTTP/1.1", 400),
        ("GET /v2/sandboxes/one/download HTTP/1.1|host: x|host: y", 400),
        ("GET /v2/sandboxes/one/download HTTP/1.1|host: x|a\0b: c", 400),
        ("GET /v2/sandboxes/one/download HTTP/1.1|host: x|range: a\rb: c", 400),
        ("GET /v2/sandboxes/one/download HTTP/1.0", 400),
        ("GET /v2/sandboxes/one/download HTTP/1.1|host: x y", 400),
        ("GET /v2/sandboxes/one/download HTTP/1.1|host: x/", 400),
        ("GET /v2/sandboxes/one/download HTTP/1.1|host: user@x", 400),
        ("GET /v2/sandboxes/one/download HTTP/1.1|host: x:0", 400),
        ("GET /v2/sandboxes/one/download HTTP/1.1|host: x..y", 400),
        ("GET /v2/sandboxes/one/download HTTP/1.1|host:", 400),
        ("GET /v2/sandboxes/one/download HTTP/1.1|host: " + "x" * 300, 400),
        ("GET http://elsewhere/v2/sandboxes/one/download HTTP/1.1|host: x", 400),
        ("GET http://x:81/v2/sandboxes/one/download HTTP/1.1|host: x", 400),
        ("GET http://user@x/v2/sandboxes/one/download HTTP/1.1|host: x", 400),
        ("GET /v2/sandboxes/one/download#x HTTP/1.1|host: x", 400),
        ("GET /v2/sandboxes/one/download HTTP/1.1|host: x|range: a\x01", 400),
        ("GET /v2/sandboxes/one/download HTTP/1.1|host: x|range: a\nb: c", 400),
        ("GET /v2/sandboxes/one/download HTTP/1.1|host: x|range: a|  b", 400),
        ("GET /v2/sandboxes/one/download HTTP/1.1|host: x" + "|a: b" * 300, 431),
        ("GET /" + "z" * 40_000 + " HTTP/1.1|host: x", 414),
        ("GET /v2/sandboxes/one/download HTTP/2.0|host: x", 505),
        ("GET v2/sandboxes HTTP/1.1|host: x", 400),
        ("CONNECT one:80 HTTP/1.1|host: x", 400),
        ("GET /v2/sandboxes/one/download HTTP/1.1|host: x|y: " + "z" * 2**17, 431),
        ("GET /" + "z" * 2**17 + " HTTP/1.1|host: x", 431),
        ("nonsense", 400),
    ],
)
async def test_ambiguous_and_broken_requests_are_refused(
    ready: Ready, daemon: Daemon, request_head: str, status: int
) -> None:
    async with RawClient.connect(ready.url) as client:
        data = request_head.replace("|", "\r\n").encode() + b"\r\n" + AUTH + b"\r\n"
        answered, headers, _ = await client.ask(data + b"5\r\nhello\r\n0\r\n\r\n")
        assert (answered, headers["connection"]) == (status, "close")
        assert await client.ended()
    assert daemon.requests == []


async def test_a_smuggled_request_stays_a_body(ready: Ready, daemon: Daemon) -> None:
    inner = head("POST", "/v2/sandboxes/one/execute", "content-length: 0")
    async with RawClient.connect(ready.url) as client:
        await client.ask(head("POST", "/v2/sandboxes/one/glob", f"content-length: {len(inner)}") + inner)
        chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner)
        await client.ask(head("POST", "/v2/sandboxes/one/grep", "transfer-encoding: chunked") + chunk)
    assert [(seen.target, seen.body) for seen in daemon.requests] == [("/glob", inner), ("/grep", inner)]


async def test_an_absolute_target_is_understood(ready: Ready, daemon: Daemon) -> None:
    async with RawClient.connect(ready.url) as client:
        status, _, body = await client.ask(head("GET", "http://SERVER:80/v2/sandboxes/one/download?path=x"))
    assert (status, body) == (200, b"one GET /download?path=x")


async def test_head_has_the_length_and_no_body(http: httpx.AsyncClient, daemon: Daemon) -> None:
    for _ in range(2):
        answer = await http.head("/one/download?path=x")
        assert (answer.headers["content-length"], answer.content) == ("25", b"")


@pytest.mark.parametrize(
    ("raw", "status", "length"),
    [
        (b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n", 204, None),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", 304, "5"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, "0"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 200, None),
    ],
)
async def test_bodiless_answers_keep_the_connection_in_step(
    ready: Ready, daemon: Daemon, raw: bytes, status: int, length: str | None
) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, *__: object) -> None:
        writer.write(raw)
        await writer.drain()

    daemon.answer = answer
    async with RawClient.connect(ready.url) as client:
        for _ in range(2):
            answered, headers, body = await client.ask(head("GET", "/v2/sandboxes/one/download"))
            assert (answered, headers.get("content-length"), body) == (status, length, b"")
            assert ("transfer-encoding" in headers) == (length is None and status == 200)


async def test_http_1_0_gets_an_answer_that_ends_with_the_connection(ready: Ready, daemon: Daemon) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, *__: object) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        await writer.drain()

    daemon.answer = answer
    async with RawClient.connect(ready.url) as client:
        client.writer.write(b"GET /v2/sandboxes/one/download HTTP/1.0\r\nhost: x\r\n" + AUTH + b"\r\n")
        assert (await client.reader.read()).endswith(b"\r\n\r\nhello")


async def test_expect_is_answered_before_the_body(ready: Ready, daemon: Daemon) -> None:
    async with RawClient.connect(ready.url) as client:
        client.writer.write(head("POST", "/v2/sandboxes/one/glob", "content-length: 5", "expect: 100-continue"))
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 \r\n\r\n"
        assert (await client.ask(b"hello", method=b"POST"))[0] == 200
    assert daemon.requests[0].body == b"hello"
    async with RawClient.connect(ready.url) as client:
        refused = head("POST", "/v2/sandboxes/unknown/glob", "content-length: 5", "expect: 100-continue")
        assert (await client.ask(refused))[0] == 404


async def test_large_bodies_stream_both_ways_in_bounded_memory(http: httpx.AsyncClient, daemon: Daemon) -> None:
    size = 256 * 2**20
    piece = bytes(2**18)
    received = 0

    async def answer(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: h11.Connection, request: h11.Request
    ) -> None:
        nonlocal received
        while isinstance(event := await next_event(connection, reader), h11.Data):
            received += len(event.data)
        writer.write(connection.send(h11.Response(status_code=200, headers=[("content-length", str(size))])) or b"")
        for _ in range(size // len(piece)):
            writer.write(connection.send(h11.Data(data=piece)) or b"")
            await writer.drain()

    async def body() -> Any:
        for _ in range(size // len(piece)):
            yield piece

    daemon.answer = answer
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sent = 0
    async with http.stream("POST", "/one/upload?path=x", content=body(), timeout=60) as response:
        async for data in response.aiter_raw():
            sent += len(data)
    assert (received, sent) == (size, size)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024  # KiB; both ends are in here too


async def test_an_answer_may_come_before_the_body_ends(ready: Ready, daemon: Daemon) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, *__: object) -> None:
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
        await writer.drain()

    daemon.answer = answer
    for _ in range(20):  # The daemon closes while more of the body is on its way: the answer is there all the same.
        async with RawClient.connect(ready.url) as client:
            client.writer.write(head("POST", "/v2/sandboxes/one/upload", f"content-length: {2**30}") + bytes(2**20))
            status, headers, body = await client.answer()
            assert (status, headers["connection"], body) == (413, "close", b"big")
            assert await client.ended()


async def test_a_client_that_leaves_takes_its_request_along(ready: Ready, daemon: Daemon) -> None:
    asked = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, *_: object) -> None:
        asked.set()
        assert await reader.read() == b""

    daemon.answer = answer
    for request in (
        head("GET", "/v2/sandboxes/one/download"),
        head("POST", "/v2/sandboxes/one/upload", "content-length: 9") + b"part",
    ):
        asked.clear()
        daemon.lost.clear()
        async with RawClient.connect(ready.url) as client:
            client.writer.write(request)
            await asyncio.wait_for(asked.wait(), 5)
        await asyncio.wait_for(daemon.lost.wait(), 5)


async def test_an_answer_that_does_not_come_is_cut_off_at_shutdown(
    server: Server, ready: Ready, daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(reader: asyncio.StreamReader, *_: object) -> None:
        await reader.read()

    daemon.answer = answer
    async with RawClient.connect(ready.url) as client:
        client.writer.write(head("GET", "/v2/sandboxes/one/download"))
        while not daemon.tasks:
            await asyncio.sleep(0.001)
        await server.router.aclose(grace=0)
        assert await client.ended()
    assert "cutting off 1 connections" in caplog.text


async def test_a_broken_body_takes_its_request_along(ready: Ready, daemon: Daemon) -> None:
    async def answer(reader: asyncio.StreamReader, *_: object) -> None:
        while await reader.read(4096):
            pass

    daemon.answer = answer
    async with RawClient.connect(ready.url) as client:
        client.writer.write(
            head("POST", "/v2/sandboxes/one/upload", "transfer-encoding: chunked") + b"5\r\nhello!!\r\n"
        )
        assert await client.ended()
    await asyncio.wait_for(daemon.lost.wait(), 5)


async def test_a_slow_head_is_408_and_an_idle_connection_closed(ready: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_reading, "HEAD_TIMEOUT", 0.05)
    async with RawClient.connect(ready.url) as client:
        assert (await client.ask(b"GET / HTTP/1.1\r\nhost: x\r\n"))[0] == 408
        assert await client.ended()
    monkeypatch.setattr(request_reading, "IDLE_TIMEOUT", 0.05)
    async with RawClient.connect(ready.url) as client:
        assert await client.ended()


async def test_a_slow_body_of_the_control_plane_is_408(ready: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi_module, "BODY_TIMEOUT", 0.05)
    async with RawClient.connect(ready.url) as client:
        status, headers, _ = await client.ask(head("POST", "/v2/sandboxes/boxes", "content-length: 2") + b"{")
        assert (status, headers["connection"]) == (408, "close")


async def test_one_connection_too_many_is_503() -> None:
    router = Router(Gate(()), max_connections=1)
    host, port = await router.listen("127.0.0.1", 0)
    url = f"http://{host}:{port}"
    async with RawClient.connect(url) as first:
        assert (await first.ask(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"))[0] == 200
        async with RawClient.connect(url) as second:
            status, headers, _ = await second.answer()
            assert (status, headers["retry-after"]) == (503, "1")
            assert await second.ended()
        assert (await first.ask(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"))[0] == 200
    await router.aclose()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:1"}, 200),
        ({"host": "[::1]:1"}, 200),
        ({"host": "evil.example"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "none"}, 200),
    ],
)
async def test_without_keys_only_this_machine_is_served(headers: dict[str, str], status: int) -> None:
    router = Router(Gate(()))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    router.app = app
    host, port = await router.listen("127.0.0.1", 0)
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"http://{host}:{port}/v2/sandboxes/boxes", headers=headers)
        assert answer.status_code == status
    await router.aclose()


async def test_a_fault_of_ours_is_500_with_its_id_in_the_log(
    server: Server, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("surprise")

    server.router.app = app
    answer = await http.get("/boxes")
    detail = answer.json()["detail"]
    assert (answer.status_code, detail["error"]) == (500, "InternalError")
    assert "surprise" not in detail["message"]
    assert detail["error_id"] in caplog.text
    assert "surprise" in caplog.text
