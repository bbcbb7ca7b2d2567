"""Whatever a client or a program says, a program sees one well-formed request per connection, or none."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from sandbox_aio.server import relay as relay_module
from sandbox_aio.server import request_reading
from tests.server.service import PORT, Service

if TYPE_CHECKING:
    from tests.server.fakes import RawClient

pytestmark = pytest.mark.anyio

EVIL = "GET /evil HTTP/1.1\r\nhost: evil\r\n\r\n"

REFUSED = {
    "CL.TE": ("POST / HTTP/1.1|HOST|content-length: 6|transfer-encoding: chunked||0\r\n\r\nG", 400),
    "TE.CL": ("POST / HTTP/1.1|HOST|transfer-encoding: chunked|content-length: 3||1\r\nG\r\n0\r\n\r\n", 400),
    "TE.TE": ("POST / HTTP/1.1|HOST|transfer-encoding: chunked|transfer-encoding: identity||0\r\n\r\n", 501),
    "TE twice": ("POST / HTTP/1.1|HOST|transfer-encoding: chunked|transfer-encoding: chunked||0\r\n\r\n", 501),
    "TE list": ("POST / HTTP/1.1|HOST|transfer-encoding: chunked, chunked||0\r\n\r\n", 501),
    "TE unknown": ("POST / HTTP/1.1|HOST|transfer-encoding: xchunked||0\r\n\r\n", 501),
    "TE last is not chunked": ("POST / HTTP/1.1|HOST|transfer-encoding: chunked, identity||0\r\n\r\n", 501),
    "TE quoted": ('POST / HTTP/1.1|HOST|transfer-encoding: "chunked"||0\r\n\r\n', 501),
    "TE with parameters": ("POST / HTTP/1.1|HOST|transfer-encoding: chunked;a=b||0\r\n\r\n", 501),
    "TE empty": ("POST / HTTP/1.1|HOST|transfer-encoding:||0\r\n\r\n", 501),
    "TE vertical tab": ("POST / HTTP/1.1|HOST|transfer-encoding:\x0bchunked||0\r\n\r\n", 400),
    "TE control": ("POST / HTTP/1.1|HOST|transfer-encoding: chunked\x01||0\r\n\r\n", 501),
    "TE space before colon": ("POST / HTTP/1.1|HOST|transfer-encoding : chunked||0\r\n\r\n", 400),
    "TE tab before colon": ("POST / HTTP/1.1|HOST|transfer-encoding\t: chunked||0\r\n\r\n", 400),
    "TE folded": ("POST / HTTP/1.1|HOST|transfer-encoding:|  chunked||0\r\n\r\n", 400),
    "TE folded away": ("POST / HTTP/1.1|HOST|x: y| transfer-encoding: chunked||0\r\n\r\n", 400),
    "TE behind a bare LF": ("POST / HTTP/1.1|HOST|x: y\ntransfer-encoding: chunked||0\r\n\r\n", 400),
    "TE behind a bare CR": ("POST / HTTP/1.1|HOST|x: y\rtransfer-encoding: chunked||0\r\n\r\n", 400),
    "TE in HTTP/1.0": ("POST / HTTP/1.0|HOST|transfer-encoding: chunked||0\r\n\r\n", 400),
    "CL twice": ("POST / HTTP/1.1|HOST|content-length: 1|content-length: 0||G", 400),
    "CL list": ("POST / HTTP/1.1|HOST|content-length: 1, 0||G", 400),
    "CL sign": ("POST / HTTP/1.1|HOST|content-length: +1||G", 400),
    "CL negative": ("POST / HTTP/1.1|HOST|content-length: -1||", 400),
    "CL hexadecimal": ("POST / HTTP/1.1|HOST|content-length: 0x1||G", 400),
    "CL underscore": ("POST / HTTP/1.1|HOST|content-length: 1_0||G", 400),
    "CL digits of another script": ("POST / HTTP/1.1|HOST|content-length: \xb2||G", 400),
    "CL empty": ("POST / HTTP/1.1|HOST|content-length:||", 400),
    "CL without end": ("POST / HTTP/1.1|HOST|content-length: " + "9" * 30 + "||", 400),
    "CL space before colon": ("POST / HTTP/1.1|HOST|content-length : 1||G", 400),
    "lines end with LF": ("GET / HTTP/1.1\nHOST\n\n", 400),
    "head ends with LF": ("GET / HTTP/1.1|HOST\n\n", 400),
    "NUL in a value": ("GET / HTTP/1.1|HOST|x: a\0b||", 400),
    "NUL in a name": ("GET / HTTP/1.1|HOST|x\0: a||", 400),
    "control in a value": ("GET / HTTP/1.1|HOST|x: a\x08b||", 400),
    "DEL in a value": ("GET / HTTP/1.1|HOST|x: a\x7fb||", 400),
    "no name": ("GET / HTTP/1.1|HOST|: a||", 400),
    "no colon": ("GET / HTTP/1.1|HOST|chunked||", 400),
    "name with a space": ("GET / HTTP/1.1|HOST|a b: c||", 400),
    "first header begins with a space": ("GET / HTTP/1.1| HOST||", 400),
    "two spaces": ("GET  / HTTP/1.1|HOST||", 400),
    "tab in the request line": ("GET\t/ HTTP/1.1|HOST||", 400),
    "space in the target": ("GET /a b HTTP/1.1|HOST||", 400),
    "HTTP/0.9": ("GET /||", 400),
    "lower case version": ("GET / http/1.1|HOST||", 400),
    "HTTP/1.10": ("GET / HTTP/1.10|HOST||", 400),
    "HTTP/2": ("GET / HTTP/2.0|HOST||", 505),
    "preface of HTTP/2": ("PRI * HTTP/2.0||SM\r\n\r\n", 505),
    "bytes of TLS": ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03||", 400),
    "high bytes in the target": ("GET /\xff HTTP/1.1|HOST||", 400),
    "fragment in the target": ("GET /#a HTTP/1.1|HOST||", 400),
    "CONNECT": ("CONNECT localhost:80 HTTP/1.1|HOST||", 400),
    "CONNECT to a path": ("CONNECT / HTTP/1.1|HOST||", 400),
    "asterisk": ("OPTIONS * HTTP/1.1|HOST||", 400),
    "no host": ("GET / HTTP/1.1|TOKEN||", 400),
    "no host in HTTP/1.0": ("GET / HTTP/1.0|TOKEN||", 400),
    "two hosts": ("GET / HTTP/1.1|HOST|host: localhost||", 400),
    "two hosts, the other first": ("GET / HTTP/1.1|host: localhost|HOST||", 400),
    "the same host twice": ("GET / HTTP/1.1|HOST|HOST||", 400),
    "hosts in a list": ("GET / HTTP/1.1|host: localhost, x|TOKEN||", 400),
    "host with a user": ("GET / HTTP/1.1|host: a@localhost|TOKEN||", 400),
    "host with a path": ("GET / HTTP/1.1|host: localhost/x|TOKEN||", 400),
    "another host in the target": ("GET http://localhost/ HTTP/1.1|HOST||", 400),
    "a user in the target": ("GET http://localhost@x/ HTTP/1.1|HOST||", 400),
    "another scheme in the target": ("GET ftp://x/ HTTP/1.1|HOST||", 400),
    "head too large": ("GET / HTTP/1.1|HOST|x: " + "y" * 70_000 + "||", 431),
    "head too large without an end": ("GET / HTTP/1.1|HOST|x: " + "y" * 200_000, 431),
    "too many headers": ("GET / HTTP/1.1|HOST" + "|a: b" * 300 + "||", 431),
    "request line too long": ("GET /" + "a" * 40_000 + " HTTP/1.1|HOST||", 414),
}  # fmt: skip
"""What is refused at its head: | is an end of line, HOST the service's own host and its token."""

BROKEN_BODIES = {
    "chunk size with a sign": "+5\r\nhello\r\n0\r\n\r\n",
    "chunk size with a prefix": "0x5\r\nhello\r\n0\r\n\r\n",
    "chunk size with a space before it": " 5\r\nhello\r\n0\r\n\r\n",
    "chunk size empty": "\r\nhello\r\n0\r\n\r\n",
    "chunk size too large": "f" * 21 + "\r\nhello\r\n0\r\n\r\n",
    "chunk size ends with LF": "5\nhello\r\n0\r\n\r\n" + "\r\n",
    "chunk longer than its size": "5\r\nhello!\r\n0\r\n\r\n",
    "chunk shorter than its size": "6\r\nhello\r\n0\r\n\r\n",
    "chunk ends with LF": "5\r\nhello\n0\r\n\r\n",
    "chunk ends with CR alone": "5\r\nhello\r0\r\n\r\n",
    "chunk extension with LF": "5;a\nb\r\nhello\r\n0\r\n\r\n",
    "chunk extension without end": "5;" + "a" * 200_000,
    "trailer without a colon": "0\r\nx\r\n\r\n",
    "trailer with a space before the colon": "0\r\nx : y\r\n\r\n",
    "trailer with NUL": "0\r\nx: \0\r\n\r\n",
    "trailers without end": "0\r\n" + "x: y\r\n" * 20_000,
}


def request(service: Service, text: str) -> bytes:
    token = f"x-langsmith-sandbox-service-token: {service.token}"
    text = text.replace("|", "\r\n").replace("HOST", f"host: {service.host}\r\n{token}", 1)
    return text.replace("HOST", f"host: {service.host}").replace("TOKEN", token).encode("latin-1")


async def in_step(service: Service, client: RawClient) -> None:
    """Either the connection is over or it answers the next request, and that one alone."""
    with contextlib.suppress(ConnectionError):
        client.writer.write(service.head("GET", "/next"))
        data = await asyncio.wait_for(client.reader.read(2**16), 5)
        if data:
            assert data == b"HTTP/1.1 200 \r\ncontent-length: 2\r\n" + data.partition(b"content-length: 2\r\n")[2]
            assert data.endswith(b"\r\n\r\nok")
            assert data.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("case", REFUSED)
async def test_refused_at_the_head(service: Service, case: str) -> None:
    text, status = REFUSED[case]
    async with service.connect() as client:
        answered, _, _ = await client.ask(request(service, text) + EVIL.encode())
        assert answered == status
        assert await client.ended()
    assert service.app.connections == []


@pytest.mark.parametrize(("text", "status"), [("TRACE / HTTP/1.1|HOST||", 405), ("GET / HTTP/1.1|HOST|TOKEN||", 400)])
async def test_refused_though_well_formed(service: Service, text: str, status: int) -> None:
    async with service.connect() as client:
        assert (await client.ask(request(service, text)))[0] == status
        await in_step(service, client)
    assert [seen.target for seen in service.app.requests()] == ["/next"]


@pytest.mark.parametrize("case", BROKEN_BODIES)
async def test_a_body_that_breaks(service: Service, case: str) -> None:
    """The program never sees the end of the request, which it could take for whole."""
    async with service.connect() as client:
        head = service.head("POST", "/", "transfer-encoding: chunked")
        client.writer.write(head + BROKEN_BODIES[case].encode("latin-1") + EVIL.encode())
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(5):
                answer = await client.reader.read()
            assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    await asyncio.wait_for(service.app.ended.wait(), 5)
    (seen,) = service.app.connections
    assert not seen.endswith(b"0\r\n\r\n")
    assert b"evil" not in seen


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ("content-length: 40", EVIL.ljust(40)),
        ("content-length: 40|content-length: 40", EVIL.ljust(40)),
        ("content-length: 40, 40", EVIL.ljust(40)),
        ("content-length: 0000000040", EVIL.ljust(40)),
        ("Transfer-Encoding: Chunked", "28\r\n" + EVIL.ljust(40) + "\r\n0\r\n\r\n"),
        ("transfer-encoding:\tchunked\t", '28;ext="a"  \r\n' + EVIL.ljust(40) + "\r\n0\r\n\r\n"),
        ("transfer-encoding: chunked", "28\r\n" + EVIL.ljust(40) + "\r\n000\r\nx: y\r\n\r\n"),
        ("content-length: 40|connection: content-length", EVIL.ljust(40)),
        ("transfer-encoding: chunked|connection: transfer-encoding", "28\r\n" + EVIL.ljust(40) + "\r\n0\r\n\r\n"),
        ("content-length: 40|content_length: 0|transfer_encoding: chunked", EVIL.ljust(40)),
        ("content-length: 40|upgrade: h2c|connection: upgrade, http2-settings|http2-settings: x", EVIL.ljust(40)),
        ("content-length: 40|upgrade: websocket|connection: upgrade", EVIL.ljust(40)),
    ],
)  # fmt: skip
async def test_a_request_within_a_body_stays_there(service: Service, headers: str, body: str) -> None:
    async with service.connect() as client:
        sent = request(service, f"POST /x HTTP/1.1|HOST|{headers}||{body}")
        client.writer.write(sent)
        assert (await client.answer(method=b"POST"))[2] == b"ok"
        await in_step(service, client)
    first, second = service.app.requests()
    assert (first.target, first.body) == ("/x", EVIL.ljust(40).encode())
    assert second.target == "/next"
    names = {name for name, _ in first.headers}
    assert not names & {"upgrade", "http2-settings", "content_length", "transfer_encoding"}


async def test_pipelined_requests_are_answered_one_by_one(service: Service) -> None:
    async with service.connect() as client:
        paths = [f"/{number}" for number in range(20)]
        client.writer.write(b"".join(service.head("GET", path) for path in paths))
        async with asyncio.timeout(10):
            for _ in paths:
                assert (await client.reader.readuntil(b"\r\n\r\nok")).count(b"HTTP/1.1") == 1
    assert [seen.target for seen in service.app.requests()] == paths


async def test_decoded_values_never_become_headers(service: Service) -> None:
    """`%0d%0a` and its relatives stay as they are, in the target and in what is made of it."""
    path = "/%0d%0ax:%20y%0a%00/%c4%8d%c4%8a?a=%0d%0aset-cookie:%20evil"
    service.app.answer = b"HTTP/1.1 302 F\r\nlocation: /%0d%0aset-cookie:%20evil\r\ncontent-length: 0\r\n\r\n"
    async with service.connect() as client:
        status, headers, _ = await client.ask(service.head("GET", path))
        assert (status, headers["location"]) == (302, "/%0d%0aset-cookie:%20evil")
        assert "set-cookie" not in headers
        head = f"GET {service.prefix}{path} HTTP/1.1\r\nhost: localhost\r\n"
        token = f"x-langsmith-sandbox-service-token: {service.token}\r\n\r\n"
        _, headers, _ = await client.ask((head + token).encode())
        assert headers["location"] == f"{service.prefix}/%0d%0aset-cookie:%20evil"
    assert [seen.target for seen in service.app.requests()] == [path, path]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\rset-cookie: b\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx : a\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 2**17,
        b"HTTP/1.1 099 Odd\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 2**14 + b"c: d\r\n",
    ],
)
async def test_a_program_that_answers_nonsense_is_502(service: Service, answer: bytes) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"/next" not in await reader.readuntil(b"\r\n\r\n"):
            writer.write(answer)
        else:
            writer.write(service.app.answer)
        await writer.drain()

    service.daemon.apps[PORT] = app
    async with service.connect() as client:
        assert (await client.ask(service.head()))[0] == 502
        await in_step(service, client)


async def test_a_program_cannot_answer_the_next_request(service: Service) -> None:
    """What follows an answer is not read: neither by this client nor by another."""
    service.app.answer = (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
    )
    async with service.connect() as client:
        for _ in range(3):
            assert (await client.ask(service.head()))[2] == b"ok"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n" + b"a: b\r\n" * 2**15,
    ],
)
async def test_a_program_that_does_not_keep_its_word_breaks_the_connection(service: Service, answer: bytes) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    service.daemon.apps[PORT] = app
    async with service.connect() as client:
        client.writer.write(service.head())
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := await asyncio.wait_for(client.reader.read(2**16), 5):
                received += data
        assert not received.endswith(b"0\r\n\r\n")
        assert b"HTTP/1.1" not in received[8:]


async def test_an_answer_before_the_requests_end_ends_the_connection(service: Service) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(service.app.answer)
        await writer.drain()

    service.daemon.apps[PORT] = app
    async with service.connect() as client:
        client.writer.write(service.head("POST", "/", "content-length: 1000"))
        status, headers, body = await client.answer(method=b"POST")
        assert (status, headers["connection"], body) == (200, "close", b"ok")
        client.writer.write(service.head("GET", "/next"))  # It would be the body's.
        assert await client.ended()


async def test_slow_clients_are_not_waited_for(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_reading, "HEAD_TIMEOUT", 0.05)
    async with service.connect() as client:
        assert (await client.ask(service.head()[:-2]))[0] == 408
        assert await client.ended()
    assert service.app.connections == []
    monkeypatch.setattr(relay_module, "SERVICE_BODY_TIMEOUT", 0.05)
    async with service.connect() as client:
        status, headers, _ = await client.ask(service.head("POST", "/", "content-length: 9") + b"part")
        assert (status, headers["connection"]) == (408, "close")
        assert await client.ended()
    await asyncio.wait_for(service.app.ended.wait(), 5)


async def test_a_websocket_that_is_refused_stays_http(service: Service) -> None:
    """What a client sends after an upgrade that did not happen is a request, checked like every other."""
    async with service.connect() as client:
        head = service.head("GET", "/ws", "connection: upgrade", "upgrade: websocket", "sec-websocket-version: 777")
        client.writer.write(head + EVIL.encode())
        async with asyncio.timeout(5):
            await client.reader.readuntil(b"\r\n\r\nok")
            # Of the server's own host, without its key:
            assert (await client.reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 401")
    assert [seen.target for seen in service.app.requests()] == ["/ws"]
