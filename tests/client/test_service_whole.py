"""Services through everything that is ours: the client, on both loops and without one, the server, a sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import httpx
import jwt
import pytest

from sandbox_aio import AsyncSandbox, AsyncSandboxClient, SandboxClient
from tests.serving import API_KEY, Server, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.anyio

PROGRAM = """
import http.server, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/events":
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            number = 0
            while True:
                event = b"data: %d\\n\\n" % number
                self.wfile.write(b"%x\\r\\n%b\\r\\n" % (len(event), event))
                self.wfile.flush()
                number += 1
                time.sleep(0.05)
        self.reply(200, self.headers.get("x-langsmith-sandbox-service-token", "no token").encode())

    def do_POST(self):
        self.reply(201, self.rfile.read(int(self.headers["content-length"])))

    def reply(self, status, body):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""
START = "nohup python3 program.py >/dev/null 2>&1 &"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("serve")) as running:
        yield running


@pytest.fixture
async def sandbox(server: Server) -> AsyncIterator[AsyncSandbox]:
    async with (
        AsyncSandboxClient(api_endpoint=server.endpoint, api_key=API_KEY) as client,
        client.sandbox() as made,
    ):
        await made.write("program.py", PROGRAM)
        await made.run(START)
        yield made


async def test_requests_and_events(sandbox: AsyncSandbox) -> None:
    service = await sandbox.service(8000)
    assert (await service.get("/")).text == "no token"
    answer = await service.post("/x", content=b"abc" * 100_000)
    assert (answer.status_code, answer.content) == (201, b"abc" * 100_000)
    async with service.stream("GET", "/events") as response:
        assert response.headers["content-type"] == "text/event-stream"
        seen = b""
        with anyio.fail_after(20):
            while b"data: 3\n\n" not in seen:
                seen += await response.receive()
    assert seen.startswith(b"data: 0\n\ndata: 1\n\n")


async def test_a_token_can_be_checked_by_anybody(sandbox: AsyncSandbox, server: Server) -> None:
    service = await sandbox.service(8000)
    token = await service.get_token()
    async with httpx.AsyncClient() as http:
        keys = jwt.PyJWKSet.from_dict((await http.get(f"{server.origin}/.well-known/jwks.json")).json())
    host = httpx.URL(await service.get_browser_url()).netloc.decode()
    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(token, key, algorithms=["EdDSA"], audience=host, issuer=server.origin)
    assert (claims["sub"], claims["port"]) == (sandbox.id, 8000)


async def test_taken_back_is_taken_back(sandbox: AsyncSandbox, server: Server) -> None:
    service = await sandbox.service(8000)
    assert (await service.get("/")).status_code == 200
    url = f"{server.endpoint}/boxes/{sandbox.name}/service-urls?port=8000"
    async with httpx.AsyncClient(headers={"x-api-key": API_KEY}) as http:
        assert (await http.delete(url)).status_code == 204
    answer = await service.get("/")
    assert (answer.status_code, answer.json()["detail"]["error"]) == (403, "AccessRevoked")


async def test_a_link_to_a_file(sandbox: AsyncSandbox) -> None:
    made = await sandbox.generate_download_url("program.py", content_type="text/plain; charset=utf-8")
    async with httpx.AsyncClient() as http:
        answer = await http.get(made.download_url)
        assert (answer.text, answer.headers["content-type"]) == (PROGRAM, "text/plain; charset=utf-8")
        part = await http.get(made.download_url, headers={"range": "bytes=-5"})
        assert (part.status_code, part.text) == (206, PROGRAM[-5:])


def test_without_a_loop(server: Server) -> None:
    with SandboxClient(api_endpoint=server.endpoint, api_key=API_KEY) as client, client.sandbox() as sandbox:
        sandbox.write("program.py", PROGRAM)
        sandbox.run(START)
        service = sandbox.service(8000)
        assert service.get("/").text == "no token"
        assert service.post("/", json=[1]).json() == [1]
        assert service.service_url == f"{server.origin}/svc/{sandbox.id}/8000/"
        assert service.token in service.browser_url
        assert (service.embed_url, service.embed_origins) == ("", [])
        with service.stream("GET", "/events") as response:
            seen = b""
            while b"data: 3\n\n" not in seen:
                seen += response.receive()
        made = client.generate_download_url(sandbox.name, "program.py")
        assert httpx.get(made.download_url).text == PROGRAM
