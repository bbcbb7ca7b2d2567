"""Tokens, the cookie they are exchanged for, and what pages of other origins cannot do with it."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import httpx
import pytest

from sandbox_aio.server import service_access as access_module
from sandbox_aio.server.errors import ApiError
from sandbox_aio.server.serve import Server, ServerConfig
from sandbox_aio.server.service_access import same_origin_path
from tests.server.conftest import KEY
from tests.server.fakes import FakeRuntime
from tests.server.service import PORT, Service, a_service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

PEM = Path(__file__).with_name("localhost.pem")


async def sign_in(service: Service, token: str, query: str = "") -> tuple[int, dict[str, str], bytes]:
    return await service.get(f"/_svc/auth?token={token}{query}", "accept: application/json", token=None)


async def cookie(service: Service, token: str | None = None) -> str:
    """The header with the cookie that a browser has after it opened the browser's URL."""
    _, headers, _ = await sign_in(service, token or service.token)
    return "cookie: " + headers["set-cookie"].partition(";")[0]


async def test_a_browser_exchanges_its_token_for_a_cookie(service: Service) -> None:
    status, headers, _ = await sign_in(service, service.mint(expires_in=600), "&redirect=/a%3Fb=c%23d")
    assert (status, headers["location"]) == (303, "/a?b=c#d")
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    pair, *attributes = headers["set-cookie"].split("; ")
    assert pair.startswith("sandbox_aio_service=")
    assert attributes[0] == "Path=/"
    assert 590 <= int(attributes[1].removeprefix("Max-Age=")) <= 600
    assert attributes[2:] == ["HttpOnly", "SameSite=Lax"]
    assert (await service.get("/", "cookie: " + pair, token=None))[0] == 200
    (request,) = service.app.requests()
    assert request.header("cookie") is None


async def test_a_link_for_embedding_gives_a_cookie_for_frames(service: Service) -> None:
    token = service.mint(embed_origins=("https://a.example",))
    _, headers, _ = await sign_in(service, token)
    assert headers["set-cookie"].endswith("; HttpOnly; SameSite=None; Secure; Partitioned")
    status, headers, _ = await service.get("/", await cookie(service, token), token=None)
    assert (status, headers["content-security-policy"]) == (200, "frame-ancestors 'self' https://a.example")


async def test_the_page_for_embedding(service: Service) -> None:
    status, headers, page = await service.get("/_svc/embed", token=None)
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "'unsafe-inline'" not in policy
    assert b"location.hash" in page
    body = json.dumps({"token": service.token, "redirect": "/next"}).encode()
    own = f"origin: http://{service.host}"
    for origin, status in ((own, 200), ("x: y", 200), ("origin: null", 403), ("origin: http://evil.example", 403)):
        async with service.connect() as client:
            head = service.head("POST", "/_svc/auth", origin, f"content-length: {len(body)}", token=None)
            answered, headers, answer = await client.ask(head + body, method=b"POST")
            assert answered == status
            assert ("set-cookie" in headers) == (status == 200)
            if status == 200:
                assert json.loads(answer) == {"redirect": "/next"}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"token":1}', b'{"token":"x","redirect":2}', b'{"token":"\xc3\xa4"}']
)
async def test_credentials_that_are_none(service: Service, body: bytes) -> None:
    async with service.connect() as client:
        head = service.head("POST", "/_svc/auth", f"content-length: {len(body)}", token=None)
        assert (await client.ask(head + body, method=b"POST"))[0] == 400


async def test_credentials_that_are_too_long_or_too_slow(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "BODY_TIMEOUT", 0.05)
    for sent, status in ((b"{", 408), (bytes(20_000), 413)):
        async with service.connect() as client:
            head = service.head("POST", "/_svc/auth", "content-length: 20000", token=None)
            assert (await client.ask(head + sent, method=b"POST"))[0] == status


async def test_what_is_below_the_servers_own_path_is_not_the_programs(service: Service) -> None:
    for method, path, status in (
        ("GET", "/_svc/", 404),
        ("GET", "/_svc/auth/", 404),
        ("PUT", "/_svc/auth", 405),
        ("HEAD", "/_svc/auth", 405),
        ("POST", "/_svc/embed", 405),
    ):
        async with service.connect() as client:
            assert (await client.ask(service.head(method, path), method=method.encode()))[0] == status
    assert service.app.connections == []
    assert (await service.get("/_svc"))[0] == 200
    assert (await service.get("/%5fsvc/auth"))[0] == 200


@pytest.mark.parametrize("redirect", ["/", "/a?b=c&d#e", "/a//b", "/%2f%2fx", "/.//x", "/ä b'\"<>"])
def test_redirects_within_the_origin(redirect: str) -> None:
    path = same_origin_path(redirect)
    assert path.startswith("/")
    assert not path.startswith("//")
    assert path.isascii()
    assert not set(path) & set(' "<>\\')


@pytest.mark.parametrize(
    "redirect",
    [
        "", "x", "//x", "///x", "/\\x", "\\/x", "http://x", "https:x", "javascript:alert(1)", " /x", "/\t/x", "/\n/x",
        "/x\r\nset-cookie: a=b", "/\x7f", "/\x00", "/" + "x" * 3000, "\u2044/x",
    ],
)  # fmt: skip
async def test_redirects_to_elsewhere_are_refused(service: Service, redirect: str) -> None:
    with pytest.raises(ApiError, match="redirect must be a path"):
        same_origin_path(redirect)
    query = str(httpx.QueryParams({"redirect": redirect}))
    status, headers, _ = await sign_in(service, service.token, f"&{query}")
    assert (status, "location" in headers, "set-cookie" in headers) == (400, False, False)


async def test_tokens_that_are_none(service: Service) -> None:
    expired, other = service.mint(expires_in=-60), service.mint(port=PORT + 1)
    for token, error in (
        ("x", "Unauthorized"),
        (other, "Unauthorized"),
        (expired, "LinkExpired"),
        ("", "Unauthorized"),
    ):
        for answer in (
            await sign_in(service, token),
            await service.get("/", token=token or "\xff"),
        ):
            status, headers, body = answer
            assert (status, json.loads(body)["detail"]["error"]) == (401, error)
            assert "set-cookie" not in headers
    status, headers, page = await service.get("/", "accept: text/html", token=None)
    assert (status, headers["content-type"]) == (401, "text/html; charset=utf-8")
    assert b"This service needs a link" in page
    assert "frame-ancestors 'self'" in headers["content-security-policy"]
    good = await cookie(service)
    service.server.authority.revoke(service.id, PORT)
    for answer in (await service.get(), await service.get("/", good, token=None)):
        assert (answer[0], json.loads(answer[2])["detail"]["error"]) == (403, "AccessRevoked")
    assert service.app.connections == []


async def test_cookies_that_are_none(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    good = await cookie(service)
    value = good.partition("=")[2]
    for field in ("sandbox_aio_service=x", f"sandbox_aio_service={service.token}", "sandbox_aio_service", f"x={value}"):
        status, _, body = await service.get("/", f"cookie: {field}", token=None)
        assert (status, json.loads(body)["detail"]["error"]) == (401, "Unauthorized")
    assert (await service.get("/", token=value))[0] == 401
    monkeypatch.setattr(service.server.authority, "_now", lambda: time.time() + 601)
    status, _, body = await service.get("/", good, token=None)
    assert (status, json.loads(body)["detail"]["error"]) == (401, "LinkExpired")
    assert service.app.connections == []


async def test_a_cookie_that_a_neighbour_set_does_not_hide_ours(service: Service) -> None:
    ours = (await cookie(service)).removeprefix("cookie: ")
    crowd = "; ".join(["sandbox_aio_service=x"] * 3)
    assert (await service.get("/", f"cookie: {crowd}; {ours}", token=None))[0] == 200
    assert (await service.get("/", f"cookie: {crowd}; {crowd}; {ours}", token=None))[0] == 401


UPGRADE = ("connection: upgrade", "upgrade: websocket")


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", (), 200),
        ("GET", ("origin: OWN",), 200),
        ("GET", ("origin: http://evil.localhost",), 403),
        ("GET", ("origin: null",), 403),
        ("POST", (), 200),
        ("POST", ("origin: OWN", "sec-fetch-site: same-origin", "sec-fetch-mode: cors"), 200),
        ("POST", ("origin: http://evil.localhost",), 403),
        ("POST", ("origin: http://localhost",), 403),
        ("POST", ("origin: null",), 403),
        ("POST", ("sec-fetch-site: same-site", "sec-fetch-mode: navigate"), 403),
        ("DELETE", ("sec-fetch-site: cross-site",), 403),
        ("GET", ("sec-fetch-site: none", "sec-fetch-mode: navigate"), 200),
        ("GET", ("sec-fetch-site: cross-site", "sec-fetch-mode: navigate"), 200),
        ("GET", ("sec-fetch-site: same-site", "sec-fetch-mode: no-cors"), 403),
        ("GET", ("sec-fetch-site: cross-site", "sec-fetch-mode: cors"), 403),
        ("GET", (*UPGRADE, "origin: http://evil.localhost"), 403),
        ("GET", (*UPGRADE, "sec-fetch-site: same-site", "sec-fetch-mode: websocket"), 403),
        ("GET", (*UPGRADE, "origin: OWN"), 200),
    ],
)  # fmt: skip
async def test_pages_of_other_origins_do_not_act_with_a_cookie(
    service: Service, method: str, headers: tuple[str, ...], status: int
) -> None:
    fields = [field.replace("OWN", f"http://{service.host}") for field in headers]
    async with service.connect() as client:
        head = service.head(method, "/", await cookie(service), *fields, token=None)
        client.writer.write(head)
        answered, _, _ = await client.answer(method=method.encode())
        assert answered == status
    assert len(service.app.connections) == (status == 200)


async def test_with_a_token_in_a_header_the_origin_does_not_matter(service: Service) -> None:
    async with service.connect() as client:
        head = service.head("POST", "/", "origin: http://elsewhere", "sec-fetch-site: cross-site")
        assert (await client.ask(head, method=b"POST"))[0] == 200


async def test_behind_a_proxy_that_speaks_tls(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    config = ServerConfig(state_dir=tmp_path, api_keys=(KEY,), public_url="https://sandboxes.example")
    server = Server(config, runtime)
    opened = await server.open()
    port = server.router._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    ready = attrs.evolve(opened, url=f"http://127.0.0.1:{port}")
    service = await a_service(server, ready, runtime, KEY)
    _, headers, _ = await sign_in(service, service.token)
    assert headers["set-cookie"].startswith("__Host-sandbox_aio_service=")
    assert headers["set-cookie"].endswith("; SameSite=Lax; Secure")
    own = f"origin: https://{service.host}"
    assert (await service.get("/", await cookie(service), own, token=None))[0] == 200
    assert service.app.requests()[0].header("x-forwarded-proto") == "https"
    await server.aclose()


@pytest.fixture
async def secure(tmp_path: Path) -> AsyncIterator[Service]:
    """A service whose server speaks TLS."""
    runtime = FakeRuntime()
    config = ServerConfig(state_dir=tmp_path, api_keys=(KEY,), tls_cert=PEM, service_domain="apps.example:8443")
    server = Server(config, runtime)
    ready = await server.open()
    context = ssl.create_default_context(cafile=str(PEM))
    async with httpx.AsyncClient(verify=context, headers={"x-api-key": KEY}) as http:
        box = (await http.post(f"{ready.endpoint}/boxes".replace("127.0.0.1", "localhost"), json={})).json()
    service = await a_service(server, ready, runtime, KEY, box["id"])
    yield service
    await server.aclose()


async def test_over_tls(secure: Service) -> None:
    host = f"{secure.id}--{PORT}.apps.example"
    context = ssl.create_default_context(cafile=str(PEM))
    port = int(secure.ready.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")

    async def ask(path: str, *headers: str) -> bytes:
        writer.write("\r\n".join([f"GET {path} HTTP/1.1", f"host: {host}", *headers, "", ""]).encode())
        async with asyncio.timeout(5):
            return await reader.readuntil(b"\r\n\r\n")

    answer = await ask(f"/_svc/auth?token={secure.token}")
    line = next(line for line in answer.split(b"\r\n") if line.startswith(b"set-cookie: "))
    assert line.startswith(b"set-cookie: __Host-sandbox_aio_service=")
    assert line.endswith(b"; HttpOnly; SameSite=Lax; Secure")
    pair = line.partition(b": ")[2].partition(b";")[0].decode()
    plain = pair.removeprefix("__Host-")
    refused = await ask("/", f"cookie: {plain}")
    assert refused.startswith(b"HTTP/1.1 401 ")
    length = int(refused.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    assert (await ask("/", f"cookie: {pair}", f"origin: https://{host}")).startswith(b"HTTP/1.1 200 ")
    writer.close()
    await writer.wait_closed()
    (request,) = secure.app.requests()
    assert (request.header("x-forwarded-proto"), request.header("cookie")) == ("https", None)
