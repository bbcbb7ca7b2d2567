"""The proxy of a sandbox: what it passes on, what it refuses, and what it adds."""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.server.egress import Origin, connected, gateway, origin

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

SECRET = "s3cr3t-value"
RULE = {
    "name": "api",
    "match_hosts": ["api.test"],
    "match_paths": ["/v1/*"],
    "headers": [{"name": "Authorization", "type": "opaque", "value": SECRET}],
}


async def ask(port: int, data: bytes) -> bytes:
    """Send bytes and read until the end."""
    async with connected(port) as (reader, writer):
        writer.write(data)
        return await reader.read()


def request(target: str, *lines: str, method: str = "GET") -> bytes:
    head = [f"{method} {target} HTTP/1.1", "Host: who.ever", *lines, "Connection: close"]
    return "\r\n".join([*head, "", ""]).encode()


async def test_a_request_in_absolute_form(tmp_path: Path) -> None:
    there = Origin()
    async with origin(there.serve) as port, gateway(tmp_path) as way:
        lines = ("Proxy-Authorization: Basic x", "X-Own: 1", "Connection: x-hop", "X-Hop: 1")
        answer = await ask(way.port, request(f"http://Web.test.:{port}/a?b=c", *lines))
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"hello")
    (head,) = there.heads
    assert head.startswith(b"GET /a?b=c HTTP/1.1\r\n")
    assert f"host: web.test:{port}\r\n".encode() in head.lower()
    assert b"x-own: 1" in head.lower()
    assert b"who.ever" not in head
    assert b"proxy" not in head.lower()
    assert b"x-hop" not in head.lower()


async def test_a_connection_is_kept_for_another_host(tmp_path: Path) -> None:
    one, two = Origin(), Origin(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\ntwo")
    async with origin(one.serve) as first, origin(two.serve) as second, gateway(tmp_path) as way:
        async with connected(way.port) as (reader, writer):
            writer.write(f"POST http://a.test:{first}/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc".encode())
            assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")
            writer.write(f"GET http://b.test:{second}/ HTTP/1.1\r\nHost: b\r\n\r\n".encode())
            await reader.readuntil(b"two")
    assert one.heads[1] == b"abc"


async def test_a_tunnel_carries_halves(tmp_path: Path) -> None:
    async def backwards(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()  # The client's end, while ours stays open.
        writer.write(data[::-1])
        await writer.drain()

    payload = bytes(range(256)) * 4096
    async with origin(backwards) as port, gateway(tmp_path) as way, connected(way.port) as (reader, writer):
        writer.write(f"CONNECT a.test:{port} HTTP/1.1\r\nHost: a\r\n\r\n".encode() + payload[:10])
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.write(payload[10:])
        writer.write_eof()
        assert await reader.read() == payload[::-1]


async def test_a_tunnel_is_no_faster_than_its_reader(tmp_path: Path) -> None:
    sent = 0
    held = asyncio.Event()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        try:
            while sent < 2**30:
                writer.write(b"x" * 65536)
                async with asyncio.timeout(1):
                    await writer.drain()
                sent += 65536
        except TimeoutError:
            held.set()

    async with origin(flood) as port, gateway(tmp_path) as way, connected(way.port) as (_, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(f"CONNECT a.test:{port} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        await asyncio.wait_for(held.wait(), 20)
        assert 0 < sent < 64 * 2**20


@pytest.mark.parametrize(
    "target",
    [
        *(
            "2130706433:80",
            "0x7f000001:80",
            "127.1:80",
            "0177.0.0.1:80",
            "u:p@a.test:80",
            "a.test",
            "a.test:0",
            "::1:80",
        ),
        *("a.test:80:80", "[::1:80", "a%2etest:80", "/etc/passwd", "http://a.test/"),
    ],
)
async def test_hosts_that_are_none(tmp_path: Path, target: str) -> None:
    async with gateway(tmp_path, allow=["*"]) as way:
        assert (await ask(way.port, request(target, method="CONNECT"))).startswith(b"HTTP/1.1 400")
        assert way.lookups == []


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "10.0.0.1", "localhost", "localhost.", "LOCALHOST"],
)
async def test_what_is_not_public_is_refused(tmp_path: Path, host: str) -> None:
    async with gateway(tmp_path) as way:
        for data in (request(f"{host}:80", method="CONNECT"), request(f"http://{host}/")):
            answer = await ask(way.port, data)
            assert answer.startswith(b"HTTP/1.1 403")
            assert b"not a public address" in answer


async def test_the_address_that_was_judged_is_connected_to(tmp_path: Path) -> None:
    """A name that changes what it stands for gains nothing: it is looked up once, and all its addresses are judged."""
    turns = iter([["8.8.8.8", "127.0.0.1"]])
    there = Origin()
    async with origin(there.serve) as port, gateway(tmp_path, allow=[], addresses=lambda host: next(turns)) as way:
        way.follow({"access_control": {"deny_list": ["8.8.8.8"]}})
        answer = await ask(way.port, request(f"rebind.test:{port}", method="CONNECT"))
        assert answer.startswith(b"HTTP/1.1 403")
        assert way.lookups == ["rebind.test"]
    assert there.heads == []


@pytest.mark.parametrize(
    "data",
    [
        b"GET http://a.test/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET http://a.test/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"GET http://a.test/ HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET http://a.test/ HTTP/1.1\nHost: a\n\n",
        b"GET http://a.test/\r HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://a.test/ HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
        b"GET http://a.test/#x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET https://a.test/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x00\x05hello\r\n\r\n",
    ],
)
async def test_requests_that_two_programs_could_read_differently(tmp_path: Path, data: bytes) -> None:
    async with gateway(tmp_path) as way:
        assert (await ask(way.port, data))[:12] == b"HTTP/1.1 400"
        assert way.lookups == []


async def test_a_huge_head(tmp_path: Path) -> None:
    async with gateway(tmp_path) as way:
        answer = await ask(way.port, b"GET http://a.test/ HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000 + b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 431")


async def test_a_host_that_is_not_there(tmp_path: Path) -> None:
    async with gateway(tmp_path, addresses=lambda host: []) as way:
        answer = await ask(way.port, request("a.test:80", method="CONNECT"))
        assert answer.startswith(b"HTTP/1.1 502")
        assert b"no address" in answer


async def test_closed(tmp_path: Path) -> None:
    async with gateway(tmp_path, is_open=False, allow=[]) as way:
        assert b"--egress closed" in await ask(way.port, request("a.test:80", method="CONNECT"))
        assert way.lookups == []


async def test_new_rules_cut_what_is_open(tmp_path: Path) -> None:
    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with origin(wait) as port, gateway(tmp_path) as way, connected(way.port) as (reader, writer):
        writer.write(f"CONNECT a.test:{port} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        way.follow({"access_control": {"allow_list": ["b.test"]}})
        assert await reader.read() == b""
        assert b"allow_list" in await ask(way.port, request(f"a.test:{port}", method="CONNECT"))


async def test_a_header_is_added_where_the_rule_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    there = Origin()
    with caplog.at_level(logging.INFO, "sandbox_aio"):
        async with origin(there.serve) as port, gateway(tmp_path, config={"rules": [RULE]}) as way:
            for target in ("api.test:{}/v1/a?k=v", "api.test:{}/v2", "web.test:{}/v1/a", "api.test:{}/v1/../v2"):
                await ask(way.port, request("http://" + target.format(port), "authorization: mine"))
    values = [SECRET.encode() in head for head in there.heads]
    assert values == [True, False, False, False]
    assert b"mine" not in there.heads[0]
    assert b"mine" in there.heads[1]
    lines = [record.getMessage() for record in caplog.records if record.name == "sandbox_aio.egress"]
    assert "host=api.test" in lines[0]
    assert "injected=api" in lines[0]
    assert SECRET not in caplog.text
    assert "k=v" not in caplog.text


async def test_a_header_is_added_within_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, authority = Origin(), trustme.CA()
    certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("api.test").configure_cert(certificate)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    async with (
        origin(there.serve, tls=certificate) as port,
        gateway(tmp_path, config={"rules": [RULE]}) as way,
        connected(way.port) as (reader, writer),
    ):
        trusting = ssl.create_default_context(cadata=way.gateway.authority.certificate.decode())
        writer.write(f"CONNECT api.test:{port} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        await writer.start_tls(trusting, server_hostname="api.test")
        writer.write(b"GET /v1/x HTTP/1.1\r\nHost: evil.example\r\nAuthorization: mine\r\n\r\n")
        await reader.readuntil(b"hello")
        writer.write(b"GET /v2/x HTTP/1.1\r\nHost: api.test\r\nAuthorization: mine\r\n\r\n")
        await reader.readuntil(b"hello")
    assert SECRET.encode() in there.heads[0]
    assert b"evil.example" not in there.heads[0]
    assert SECRET.encode() not in there.heads[1]
    assert (tmp_path / "keys" / "egress-ca.pem").stat().st_mode & 0o777 == 0o600


async def test_an_origin_with_a_wrong_certificate_is_told_nothing(tmp_path: Path) -> None:
    there, stranger = Origin(), trustme.CA()
    certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    stranger.issue_cert("api.test").configure_cert(certificate)
    async with (
        origin(there.serve, tls=certificate) as port,
        gateway(tmp_path, config={"rules": [RULE]}) as way,
        connected(way.port) as (reader, writer),
    ):
        trusting = ssl.create_default_context(cadata=way.gateway.authority.certificate.decode())
        writer.write(f"CONNECT api.test:{port} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        await writer.start_tls(trusting, server_hostname="api.test")
        writer.write(b"GET /v1/x HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 502")
    assert there.heads == []
