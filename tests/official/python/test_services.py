"""The official Python client reaches services and files by URL (wire protocol, section 6)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest
from langsmith.sandbox import AsyncServiceURL, ResourceNotFoundError, ServiceURL

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.serving import Server

pytestmark = pytest.mark.anyio

PORT = 8000
PROGRAM = """
import http.server, json

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        seen = {"method": self.command, "path": self.path, "headers": dict(self.headers), "body": body}
        answer = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""


async def start(sandbox: Any) -> None:
    """Have the program listen in the sandbox. Nobody waits until it does: that is the server's task."""
    await sandbox.write("/tmp/program.py", PROGRAM)
    await sandbox.run("nohup python3 /tmp/program.py >/dev/null 2>&1 &", shell="/bin/sh")


async def said(url: Any, name: str) -> Any:
    """What a URL object of either kind says."""
    return await getattr(url, f"get_{name}")() if isinstance(url, AsyncServiceURL) else getattr(url, name)


async def ask(url: Any, method: str, *arguments: Any, **options: Any) -> Any:
    """Send a request. The response is one of `httpx` or of `httpx2`: the client takes the latter where there is one."""
    given = getattr(url, method)(*arguments, **options)
    return await given if isinstance(url, AsyncServiceURL) else given


async def test_a_service(sandbox: Any, server: Server) -> None:
    await start(sandbox)
    url = await sandbox.service(PORT)
    assert isinstance(url, AsyncServiceURL | ServiceURL)
    assert await said(url, "service_url") == f"{server.origin}/svc/{sandbox.id}/{PORT}/"
    answer = await ask(url, "get", "/a?b=c", timeout=20)
    assert (answer.status_code, answer.json()["path"]) == (200, "/a?b=c")
    assert await said(url, "token") not in answer.text
    for method in ("post", "put", "patch"):
        seen = (await ask(url, method, "/x", json={"a": 1})).json()
        assert (seen["method"], seen["path"], seen["body"].replace(" ", "")) == (method.upper(), "/x", '{"a":1}')
    assert (await ask(url, "delete", "/x")).json()["method"] == "DELETE"
    left = datetime.fromisoformat(str(await said(url, "expires_at"))) - datetime.now(UTC)
    assert 590 < left.total_seconds() <= 601


async def test_short_tokens_are_renewed(sandbox: Any) -> None:
    await start(sandbox)
    url = await sandbox.service(PORT, expires_in_seconds=5)
    first = await said(url, "token")
    for _ in range(3):
        assert (await ask(url, "get", timeout=20)).status_code == 200
    with anyio.fail_after(10):
        while await said(url, "token") == first:  # Tokens of the same second are the same.
            await anyio.sleep(0.05)
    assert (await ask(url, "get", timeout=20)).status_code == 200


async def test_a_browser_url(sandbox: Any, server: Server) -> None:
    await start(sandbox)
    url = await sandbox.service(PORT, embed_origins=["https://a.example"])
    browser, embed = httpx.URL(await said(url, "browser_url")), httpx.URL(await said(url, "embed_url"))
    host = f"{sandbox.id}--{PORT}.localhost:{httpx.URL(server.origin).port}"
    assert (browser.netloc.decode(), browser.path, embed.netloc, embed.path) == (
        host,
        "/_svc/auth",
        browser.netloc,
        "/_svc/embed",
    )
    assert embed.fragment.startswith("token=")
    async with httpx.AsyncClient(base_url=server.origin, headers={"host": host}, timeout=20) as http:
        entered = await http.get(browser.raw_path.decode())
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        cookie = entered.headers["set-cookie"].partition(";")[0]
        seen = await http.get("/page", headers={"cookie": cookie})
        assert (seen.status_code, seen.json()["path"]) == (200, "/page")
        assert seen.headers["content-security-policy"] == "frame-ancestors 'self' https://a.example"


async def test_a_port_where_nothing_listens(sandbox: Any) -> None:
    url = await sandbox.service(PORT + 1)
    answer = await ask(url, "get", timeout=20)
    assert (answer.status_code, answer.json()["detail"]["error"]) == (502, "ConnectionRefused")


async def test_a_stopped_sandbox_is_woken(sandbox: Any) -> None:
    url = await sandbox.service(PORT)
    await sandbox.stop()
    assert (await ask(url, "get", timeout=20)).status_code == 502
    assert (await sandbox.run("echo up")).stdout == "up\n"


async def test_a_download_link(sandbox: Any, client: Any) -> None:
    await sandbox.write("/tmp/a b.txt", "0123456789")
    made = await sandbox.generate_download_url("/tmp/a b.txt", expires_in_seconds=60, content_disposition="inline")
    async with httpx.AsyncClient() as http:
        answer = await http.get(made.download_url)
        assert (answer.status_code, answer.text) == (200, "0123456789")
        assert answer.headers["content-disposition"].startswith("inline;")
        part = await http.get(made.download_url, headers={"range": "bytes=2-4"})
        assert (part.status_code, part.text, part.headers["content-range"]) == (206, "234", "bytes 2-4/10")
        await sandbox.write("/tmp/a b.txt", "new")
        assert (await http.get(made.download_url)).text == "new"
        lasting = await client.generate_download_url(sandbox.name, "/tmp/a b.txt")
        assert lasting.expires_at is None
        await sandbox.delete()
        assert (await http.get(lasting.download_url)).status_code == 404


async def test_of_a_sandbox_that_is_not_there(make_client: Callable[..., Any]) -> None:
    async with make_client() as client:
        for call in (client.service("none", 80), client.generate_download_url("none", "/a")):
            with pytest.raises(ResourceNotFoundError):
                await call
