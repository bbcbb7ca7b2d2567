"""Real web servers in a sandbox, reached through their service URLs by HTTPX, by curl and by a websocket client."""

from __future__ import annotations

import hashlib
import importlib
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import httpx
import pytest
from websockets.sync.client import connect

from sandbox_aio import SandboxClient
from tests.real.conftest import ASYNC_SETTINGS
from tests.real.packages import PACKAGES, put_packages
from tests.serving import API_KEY, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN_HEADER = "X-Langsmith-Sandbox-Service-Token"
APP = Path(__file__).with_name("fastapi_app.py")
FILE = bytes(range(256)) * 400
LATE = "sleep 2; exec python3 -m http.server 8000"


@attrs.frozen
class Site:
    """A service, as a program knows it that was told no more than these two."""

    url: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        """What every request needs."""
        return {TOKEN_HEADER: self.token}

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=20)

    def curl(self, path: str, *options: str, sent: bytes = b"") -> bytes:
        """What curl prints; an answer of 400 or above is an error unless the options say otherwise."""
        command = ["curl", "--silent", "--show-error", "--max-time", "20", "--header", f"{TOKEN_HEADER}: {self.token}"]
        done = subprocess.run([*command, *options, self.url + path], input=sent, capture_output=True, check=True)
        return done.stdout


@pytest.fixture(scope="module")
def sites(server: Server) -> Iterator[dict[str, Site]]:
    """One sandbox: `files` is http.server, `app` FastAPI on uvicorn, `nothing` a port on which nobody listens."""
    with SandboxClient(api_endpoint=server.endpoint, api_key=API_KEY) as client, client.sandbox() as sandbox:
        put_packages(sandbox, "fastapi", "uvicorn", "websockets")
        sandbox.write("/srv/app.py", APP.read_text())
        sandbox.write("/srv/files/data.bin", FILE)
        uvicorn = sandbox.run(
            "python3 -m uvicorn app:app --port 8001",
            cwd="/srv",
            env={"PYTHONPATH": PACKAGES},
            timeout=0,
            wait=False,
        )
        sandbox.run("python3 -m http.server 8000", cwd="/srv/files", timeout=0, wait=False)
        for chunk in uvicorn:
            if "Uvicorn running" in chunk.data:
                break
        ports = {"files": 8000, "app": 8001, "nothing": 8002}
        services = {name: sandbox.service(port) for name, port in ports.items()}
        yield {name: Site(service.service_url.rstrip("/"), service.token) for name, service in services.items()}


@pytest.fixture
def files(sites: dict[str, Site]) -> Site:
    return sites["files"]


@pytest.fixture
def app(sites: dict[str, Site]) -> Site:
    return sites["app"]


def test_http_server(files: Site) -> None:
    with files.client() as client:
        assert "data.bin" in client.get("/").text
        answer = client.get("/data.bin")
        assert (answer.status_code, answer.content) == (200, FILE)
        head = client.head("/data.bin")
        assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(FILE)), b"")
        assert client.get("/none").status_code == 404
        assert client.get("/data.bin", headers={TOKEN_HEADER: "wrong"}).status_code == 401


def test_curl_and_http_server(files: Site) -> None:
    assert files.curl("/data.bin", "--fail") == FILE
    head = files.curl("/data.bin", "--head").decode()
    assert head.startswith("HTTP/1.1 200") and f"content-length: {len(FILE)}" in head.lower()
    assert files.curl("/none", "--output", "/dev/null", "--write-out", "%{http_code}") == b"404"


def test_fastapi(app: Site) -> None:
    with app.client() as client:
        assert client.get("/items/7", params={"q": "a b/ü"}).json() == {"item_id": 7, "q": "a b/ü"}
        made = client.post("/items", json={"name": "pen", "price": 1.5})
        assert (made.status_code, made.json()) == (201, {"name": "pen", "price": 1.5})
        assert client.post("/items", json={"name": "pen"}).status_code == 422
        missing = client.get("/items/101")
        assert (missing.status_code, missing.json()) == (404, {"detail": "no item 101"})
        assert client.get("/openapi.json").json()["info"]["title"] == "FastAPI"


def test_curl_and_fastapi(app: Site) -> None:
    sent = ["--header", "Content-Type: application/json", "--data-binary", "@-"]
    assert json.loads(app.curl("/items", *sent, sent=b'{"name": "pen", "price": 2}')) == {"name": "pen", "price": 2.0}
    assert app.curl("/numbers", "--no-buffer").count(b"\n") == 100_000
    body = FILE * 20
    chunked = ["--request", "POST", "--upload-file", "-", "--header", "Expect: 100-continue"]
    assert json.loads(app.curl("/digest", *chunked, sent=body))["sha256"] == hashlib.sha256(body).hexdigest()


def test_a_part_of_a_file(app: Site) -> None:
    with app.client() as client:
        answer = client.get("/file", headers={"Range": "bytes=1000-1999"})
        assert (answer.status_code, answer.content) == (206, FILE[1000:2000])
        assert answer.headers["content-range"] == f"bytes 1000-1999/{len(FILE)}"
        beyond = client.get("/file", headers={"Range": f"bytes={len(FILE)}-"})
        assert beyond.status_code == 416
    assert app.curl("/file", "--range", "5-9") == FILE[5:10]


def test_an_answer_that_streams(app: Site) -> None:
    with app.client() as client, client.stream("GET", "/numbers") as answer:
        assert "content-length" not in answer.headers
        lines = list(answer.iter_lines())
    assert lines == [str(number) for number in range(100) for _ in range(1000)]


def test_events_come_one_by_one(app: Site) -> None:
    with app.client() as client, client.stream("GET", "/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        for number in range(3):  # each is read before the program is told to send the next
            assert [next(lines) for _ in range(3)] == ["event: step", f"data: {number}", ""]
            assert client.post("/tell").status_code == 200
        assert list(lines) == []


def test_an_upload_that_streams(app: Site) -> None:
    pieces = [bytes([number]) * 64 * 1024 for number in range(64)]
    with app.client() as client:
        answer = client.post("/digest", content=iter(pieces)).json()
    body = b"".join(pieces)
    assert answer == {"size": len(body), "sha256": hashlib.sha256(body).hexdigest(), "length": None}


def test_websockets(app: Site) -> None:
    address = app.url.replace("http://", "ws://") + "/echo"
    with connect(address, additional_headers=app.headers, subprotocols=["echo"]) as socket:  # type: ignore[list-item]
        assert socket.subprotocol == "echo"
        for message in ("a text, ü", b"\0bytes", "x" * 1_000_000, FILE * 5):
            socket.send(message)
            assert socket.recv(timeout=20) == message
        assert socket.ping().wait(20)


def test_nobody_listens(sites: dict[str, Site]) -> None:
    with sites["nothing"].client() as client:
        answer = client.get("/")
    assert answer.status_code == 502
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["detail"]["error"] == "ConnectionRefused"


def test_a_program_that_listens_late(server: Server) -> None:
    with SandboxClient(api_endpoint=server.endpoint, api_key=API_KEY) as client, client.sandbox() as sandbox:
        service = sandbox.service(8000)
        sandbox.run(LATE, timeout=0, wait=False)
        answer = httpx.get(service.service_url, headers={TOKEN_HEADER: service.token}, timeout=20)
        assert (answer.status_code, "Directory listing" in answer.text) == (200, True)


# --- E10 and the lines about services of E13 --------------------------------------------------------------------------


def test_e10_a_service_url(m: Any) -> None:
    with m.SandboxClient() as client, client.sandbox(snapshot_id=client.get_snapshot("host").id) as sb:
        sb.write("api/data", '{"a": 1}')
        sb.run("python -m http.server 8000", timeout=0, wait=False)
        svc = sb.service(port=8000)
        assert f"{sb.id}--8000." in svc.browser_url
        assert svc.get("/api/data").json() == {"a": 1}
        assert svc.post("/api/data", json={"key": "value"}).status_code == 501  # http.server has no POST


@pytest.fixture(params=ASYNC_SETTINGS, ids="-".join)
def setting(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The module that an async program imports from, and its event loop."""
    chosen: tuple[str, str] = request.param
    return chosen


@pytest.fixture
def anyio_backend(setting: tuple[str, str]) -> str:
    return setting[1]


@pytest.mark.anyio
async def test_e13_a_service_url(setting: tuple[str, str]) -> None:
    m = importlib.import_module(setting[0])
    async with m.AsyncSandboxClient() as client:
        snapshot_id = (await client.get_snapshot("host")).id
        async with await client.sandbox(snapshot_id=snapshot_id) as sb:
            await sb.write("api/data", '{"a": 1}')
            await sb.run("python -m http.server 8000", timeout=0, wait=False)
            svc = await sb.service(port=8000)
            assert (await svc.get("/api/data")).json() == {"a": 1}
            assert (await svc.get_service_url()).endswith(f"/svc/{sb.id}/8000/")
            assert (await svc.get_token()).count(".") == 2
            assert (await svc.post("/api/data", json={})).status_code == 501
