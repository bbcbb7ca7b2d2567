"""Download links: what the daemon is asked, and what a browser is told of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.server.conftest import KEY

if TYPE_CHECKING:
    import asyncio

    import h11

    from sandbox_aio.server.serve import Server
    from tests.server.fakes import FakeRuntime
    from tests.server.service import Service

pytestmark = pytest.mark.anyio


def link(service: Service, path: str = "/data/a b.html", **members: Any) -> str:
    """The URL of a new link to a file of the sandbox."""
    token = service.server.authority.mint_download(sandbox_id=service.id, path=path, **members).token
    return f"{service.ready.url}/dl/{token}"


async def test_a_link_needs_no_key_and_leads_to_one_path(service: Service) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.get(link(service), params={"path": "/etc/passwd"}, headers={"range": "bytes=0-1"})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html"
        assert answer.headers["content-disposition"] == "attachment; filename=\"a b.html\"; filename*=UTF-8''a%20b.html"
        assert answer.headers["content-security-policy"] == "sandbox"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "set-cookie" not in answer.headers
        head = await http.head(link(service))
        assert (head.status_code, head.content, int(head.headers["content-length"]) > 0) == (200, b"", True)
        for method in ("POST", "DELETE", "PUT", "OPTIONS"):
            assert (await http.request(method, link(service))).status_code == 405
        for path in ("/dl/", "/dl/x", "/dl/" + "x" * 10_000, f"/dl/{service.token}"):
            assert (await http.get(service.ready.url + path)).status_code == 404
        page = await http.get(f"{service.ready.url}/dl/x", headers={"accept": "text/html"})
        assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
        assert page.headers["content-security-policy"].endswith("; sandbox")
    first, second = service.daemon.requests
    assert (first.method, first.target, first.headers["range"]) == (
        "GET",
        "/download?path=/data/a%20b.html",
        "bytes=0-1",
    )
    assert second.method == "HEAD"


async def test_what_the_link_says_of_the_file(service: Service) -> None:
    async def answer(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: h11.Connection, request: h11.Request
    ) -> None:
        status = b"404 Not Found" if b"missing" in request.target else b"206 Partial Content"
        writer.write(
            b'HTTP/1.1 %b\r\ncontent-type: application/octet-stream\r\ncontent-range: bytes 0-1/9\r\netag: "e"\r\n'
            b"content-length: 2\r\ncontent-security-policy: x\r\nset-cookie: a=b\r\n\r\nok" % status
        )
        await writer.drain()

    service.daemon.answer = answer
    async with httpx.AsyncClient() as http:
        url = link(
            service,
            '/ä".bin',
            content_type="image/svg+xml",
            content_disposition="inline",
            csp_sandbox_flags=("allow-scripts", "allow-same-origin", "x; script-src *"),
        )
        got = await http.get(url)
        assert (got.status_code, got.headers["content-range"], got.headers["etag"]) == (206, "bytes 0-1/9", '"e"')
        assert got.headers["content-type"] == "image/svg+xml"
        assert got.headers["content-disposition"] == "inline; filename=\"__.bin\"; filename*=UTF-8''%C3%A4%22.bin"
        assert got.headers.get_list("content-security-policy") == ["sandbox allow-scripts"]
        assert "set-cookie" not in got.headers
        assert (await http.get(link(service, "/x"))).headers["content-type"] == "application/octet-stream"
        missing = await http.get(link(service, "/missing.html"))
        assert (missing.status_code, missing.headers["content-type"]) == (404, "application/octet-stream")
        assert missing.headers["content-security-policy"] == "sandbox"


async def test_a_link_wakes_its_sandbox_and_dies_with_it(
    service: Service, server: Server, runtime: FakeRuntime
) -> None:
    url = link(service)
    async with httpx.AsyncClient() as http:
        await server.registry.stop(service.id)
        assert (await http.get(url)).status_code == 200
        assert [call for call, _ in runtime.calls].count("start") == 2
        await server.registry.delete(service.id)
        assert (await http.get(url)).status_code == 404


async def test_the_keys_are_public(service: Service) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"{service.ready.url}/.well-known/jwks.json")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert "keys" in answer.json()
        assert (await http.get(f"{service.ready.url}/.well-known/other", headers={"x-api-key": KEY})).status_code == 404
