"""Service URLs and download links as the control plane makes, lists and takes them back."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest

from sandbox_aio.server.serve import ServeError, Server, ServerConfig
from sandbox_aio.server.service_tokens import TokenError
from tests.server.conftest import KEY

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox_aio.server.serve import Ready
    from tests.server.fakes import FakeRuntime

pytestmark = pytest.mark.anyio


@pytest.fixture
async def box(http: httpx.AsyncClient) -> str:
    """The id of a sandbox named one."""
    answer = await http.post("/boxes", json={"name": "one"})
    assert answer.status_code == 201, answer.text
    id: str = answer.json()["id"]
    return id


async def make(http: httpx.AsyncClient, what: str = "service-url", name: str = "one", **body: Any) -> dict[str, Any]:
    answer = await http.post(f"/boxes/{name}/{what}", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    made: dict[str, Any] = answer.json()
    return made


def seconds_left(made: dict[str, Any]) -> float:
    return (datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)).total_seconds()


async def test_a_service_url(http: httpx.AsyncClient, server: Server, ready: Ready, box: str) -> None:
    made = await make(http, port=8000)
    port = urlsplit(ready.url).port
    assert made.keys() == {"browser_url", "service_url", "token", "expires_at"}
    assert made["service_url"] == f"{ready.url}/svc/{box}/8000/"
    assert made["browser_url"] == f"http://{box}--8000.localhost:{port}/_svc/auth?token={made['token']}"
    assert 595 < seconds_left(made) <= 601
    grant = server.authority.verify(made["token"], sandbox_id=box, port=8000)
    assert grant.expires_at == datetime.fromisoformat(made["expires_at"])
    by_id = await make(http, name=box, port=8000, expires_in_seconds=86400, access="off", embed_origins=[])
    assert 86395 < seconds_left(by_id) <= 86401
    assert "embed_url" not in by_id


async def test_a_service_url_to_embed(http: httpx.AsyncClient, server: Server, ready: Ready, box: str) -> None:
    origins = [
        "https://A.example",
        "https://b.example:8443",
        "http://localhost:3000",
        "http://[::1]",
        "http://a.localhost",
    ]
    made = await make(http, port=1, embed_origins=origins)
    lower = [origin.lower() for origin in origins]
    assert made["embed_origins"] == lower
    port = urlsplit(ready.url).port
    assert made["embed_url"] == f"http://{box}--1.localhost:{port}/_svc/embed#token={made['token']}"
    assert list(server.authority.verify(made["token"], sandbox_id=box, port=1).embed_origins) == lower


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "port"),
        ({"port": "80"}, "port"),
        ({"port": True}, "port"),
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"port": 80, "expires_in_seconds": 0}, "expires_in_seconds"),
        ({"port": 80, "expires_in_seconds": 86401}, "expires_in_seconds"),
        ({"port": 80, "expires_in_seconds": 1.5}, "expires_in_seconds"),
        ({"port": 80, "access": "public"}, "access"),
        ({"port": 80, "embed_origins": ["https://a.example"] * 6}, "embed_origins"),
        ({"port": 80, "embed_origins": ["http://a.example"]}, "embed_origins"),
        ({"port": 80, "embed_origins": ["https://a.example/"]}, "embed_origins"),
        ({"port": 80, "embed_origins": ["https://*.example"]}, "embed_origins"),
        ({"port": 80, "embed_origins": ["https://a.example; script-src *"]}, "embed_origins"),
        ({"port": 80, "embed_origins": ["https://a.example\n"]}, "embed_origins"),
        ({"port": 80, "embed_origins": ["https://" + "a" * 300]}, "embed_origins"),
        ({"port": 80, "embed_origins": ["https://u@a.example"]}, "embed_origins"),
        ({"port": 80, "more": 1}, "more"),
    ],
)
async def test_service_urls_that_cannot_be(http: httpx.AsyncClient, box: str, body: dict[str, Any], field: str) -> None:
    answer = await http.post("/boxes/one/service-url", json=body)
    assert answer.status_code == 422
    assert [(detail["loc"], detail["type"]) for detail in answer.json()["detail"]] == [(["body", field], "value_error")]
    assert (await http.get("/boxes/one/service-urls")).json()["service_urls"] == []


@pytest.mark.parametrize("access", ["restricted", "workspace"])
async def test_login_is_not_offered(http: httpx.AsyncClient, box: str, access: str) -> None:
    answer = await http.post("/boxes/one/service-url", json={"port": 80, "access": access})
    assert (answer.status_code, answer.json()["detail"]["error"]) == (501, "NotImplemented")
    assert "leave out access" in answer.json()["detail"]["message"]


async def test_what_there_is_is_listed_and_taken_back(http: httpx.AsyncClient, server: Server, box: str) -> None:
    assert (await http.get("/boxes/one/service-urls")).json() == {"service_urls": [], "items": []}
    made = await make(http, port=8000, embed_origins=["https://a.example"])
    other = await make(http, port=80)
    listed = (await http.get("/boxes/one/service-urls")).json()["service_urls"]
    assert [(url["port"], url["access"], url["embed_origins"]) for url in listed] == [
        (80, "token", []),
        (8000, "token", ["https://a.example"]),
    ]
    assert listed[1]["expires_at"] == made["expires_at"]
    for _ in range(2):
        assert (await http.delete("/boxes/one/service-urls", params={"port": 8000})).status_code == 204
    with pytest.raises(TokenError, match="revoked"):
        server.authority.verify(made["token"], sandbox_id=box, port=8000)
    server.authority.verify(other["token"], sandbox_id=box, port=80)
    assert [url["port"] for url in (await http.get("/boxes/one/service-urls")).json()["service_urls"]] == [80]


@pytest.mark.parametrize("query", ["", "?port=", "?port=x", "?port=0", "?port=65536", "?port=٣"])
async def test_revoking_names_a_port(http: httpx.AsyncClient, box: str, query: str) -> None:
    answer = await http.delete(f"/boxes/one/service-urls{query}")
    assert (answer.status_code, answer.json()["detail"]["error"]) == (400, "InvalidRequest")


async def test_a_download_link(http: httpx.AsyncClient, server: Server, ready: Ready, box: str) -> None:
    made = await make(http, "download-url", path="/a/b.html")
    assert made == {"download_url": f"{ready.url}/dl/{made['token']}", "token": made["token"], "expires_at": None}
    grant = server.authority.verify_download(made["token"])
    assert (grant.sandbox_id, grant.path) == (box, "/a/b.html")
    how: dict[str, Any] = {
        "content_type": 'text/html; charset="utf-8"',
        "content_disposition": "inline",
        "csp_sandbox": True,
        "csp_sandbox_flags": ["allow-scripts"],
        "csp_source_bundles": [],
    }
    full = await make(http, "download-url", path="b", expires_in_seconds=60, **how)
    assert 55 < seconds_left(full) <= 61
    grant = server.authority.verify_download(full["token"])
    assert (grant.content_type, grant.content_disposition, grant.csp_sandbox_flags) == (
        how["content_type"],
        "inline",
        ("allow-scripts",),
    )


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "path"),
        ({"path": ""}, "path"),
        ({"path": "a\0"}, "path"),
        ({"path": "\ud800"}, "path"),
        ({"path": "x" * 4097}, "path"),
        ({"path": "ü" * 2000}, "path"),
        ({"path": "a", "expires_in_seconds": 0}, "expires_in_seconds"),
        ({"path": "a", "expires_in_seconds": 10**12}, "expires_in_seconds"),
        ({"path": "a", "content_type": "html"}, "content_type"),
        ({"path": "a", "content_type": "text/html\r\nx: y"}, "content_type"),
        ({"path": "a", "content_type": "text/" + "x" * 300}, "content_type"),
        ({"path": "a", "content_disposition": "form-data"}, "content_disposition"),
        ({"path": "a", "csp_sandbox": False}, "csp_sandbox"),
        ({"path": "a", "csp_sandbox_flags": ["allow-scripts; x"]}, "csp_sandbox_flags"),
        ({"path": "a", "csp_sandbox_flags": ["allow-same-origin"]}, "csp_sandbox_flags"),
        ({"path": "a", "csp_sandbox_flags": ["allow-scripts"] * 17}, "csp_sandbox_flags"),
        ({"path": "a", "csp_source_bundles": ["cdn"]}, "csp_source_bundles"),
    ],
)
async def test_links_that_cannot_be(http: httpx.AsyncClient, box: str, body: dict[str, Any], field: str) -> None:
    answer = await http.post("/boxes/one/download-url", content=json.dumps(body))
    assert answer.status_code == 422
    assert [detail["loc"] for detail in answer.json()["detail"]] == [["body", field]]


async def test_a_sandbox_that_is_gone_takes_its_tokens_with_it(
    http: httpx.AsyncClient, server: Server, runtime: FakeRuntime, box: str
) -> None:
    token = (await make(http, port=80))["token"]
    link = (await make(http, "download-url", path="/a"))["token"]
    assert (await http.delete("/boxes/one")).status_code == 204
    with pytest.raises(TokenError, match="revoked"):
        server.authority.verify(token, sandbox_id=box, port=80)
    with pytest.raises(TokenError):
        server.authority.verify_download(link)
    for method, path in (
        ("POST", "service-url"), ("GET", "service-urls"), ("DELETE", "service-urls?port=1"), ("POST", "download-url"),
    ):  # fmt: skip
        answer = await http.request(method, f"/boxes/one/{path}", json={"port": 80, "path": "/a"})
        assert (answer.status_code, answer.json()["detail"]["error"]) == (404, "SandboxNotFound")


async def test_nothing_is_minted_for_what_is_being_deleted(
    http: httpx.AsyncClient, server: Server, runtime: FakeRuntime, box: str
) -> None:
    async with server.registry._lock(box):
        deleting = asyncio.create_task(http.delete("/boxes/one"))
        while (await http.get("/boxes/one/status")).json()["status"] != "deleting":
            pass
        answer = await http.post("/boxes/one/service-url", json={"port": 80})
        assert (answer.status_code, answer.json()["detail"]["error"]) == (404, "SandboxNotFound")
        answer = await http.post("/boxes/one/download-url", json={"path": "/a"})
        assert answer.status_code == 404
    assert (await deleting).status_code == 204


async def test_no_key_no_url(ready: Ready, box: str) -> None:
    async with httpx.AsyncClient(base_url=ready.endpoint) as stranger:
        for method, path in (("POST", "service-url"), ("GET", "service-urls"), ("POST", "download-url")):
            assert (await stranger.request(method, f"/boxes/one/{path}")).status_code == 401


async def test_urls_as_the_operator_says(tmp_path: Path, runtime: FakeRuntime) -> None:
    config = ServerConfig(
        state_dir=tmp_path,
        api_keys=(KEY,),
        public_url="https://sandboxes.example",
        service_domain="services.example",
    )
    server = Server(config, runtime)
    await server.open()
    try:
        port = server.router._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        url = f"http://127.0.0.1:{port}/api/v2/sandboxes"
        async with httpx.AsyncClient(base_url=url, headers={"x-api-key": KEY}) as http:
            id = (await http.post("/boxes", json={"name": "one"})).json()["id"]
            made = await make(http, port=8000)
            assert made["service_url"] == f"https://sandboxes.example/svc/{id}/8000/"
            assert made["browser_url"].startswith(f"https://{id}--8000.services.example/_svc/auth?token=")
    finally:
        await server.aclose()


async def test_damaged_keys_stop_the_start(tmp_path: Path, runtime: FakeRuntime) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "services.json").write_text("?")
    with pytest.raises(ServeError, match=r"services\.json is not a file of signing keys"):
        await Server(ServerConfig(state_dir=tmp_path), runtime).open()


@pytest.mark.parametrize("domain", ["", "a b", "https://x", "x/", ".x", "x:y", "*.x"])
async def test_a_service_domain_is_a_domain(tmp_path: Path, runtime: FakeRuntime, domain: str) -> None:
    with pytest.raises(ServeError, match="service domain"):
        await Server(ServerConfig(state_dir=tmp_path, service_domain=domain), runtime).open()
    await runtime.aclose(destroy=True)
