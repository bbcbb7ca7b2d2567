"""A server's beginning and end, over a fake runtime."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from sandbox_aio.runtimes.base import Unavailable
from sandbox_aio.server.serve import Ready, ServeError, Server, ServerConfig, make_runtime, serve
from sandbox_aio.server.splice import close_frame
from tests.server.conftest import KEY
from tests.server.fakes import RawClient
from tests.server.test_splice import WebsocketDaemon, frame, upgraded

if TYPE_CHECKING:
    from typing import Any

    from tests.server.fakes import FakeRuntime

pytestmark = pytest.mark.anyio

CERTIFICATE = Path(__file__).with_name("localhost.pem")
"""A self-signed certificate for localhost and its key, for tests only."""


async def refused(runtime: FakeRuntime, **settings: Any) -> ServeError:
    with pytest.raises(ServeError) as caught:
        await Server(ServerConfig(**settings), runtime).open()
    await runtime.aclose(destroy=True)
    return caught.value


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
async def test_no_address_but_loopback_is_served_without_a_key(runtime: FakeRuntime, tmp_path: Path, host: str) -> None:
    error = await refused(runtime, state_dir=tmp_path, host=host)
    assert "without an API key" in str(error)
    assert "--api-key" in error.hint


async def test_an_empty_key_is_refused(runtime: FakeRuntime, tmp_path: Path) -> None:
    assert "empty" in str(await refused(runtime, state_dir=tmp_path, api_keys=("",)))


@pytest.mark.parametrize("url", ["sandboxes.example", "ftp://host", "https://host/path", "https://host?x", "https://"])
async def test_a_public_url_is_an_origin(runtime: FakeRuntime, tmp_path: Path, url: str) -> None:
    assert "not an origin" in str(await refused(runtime, state_dir=tmp_path, public_url=url))


@pytest.mark.parametrize("domain", ["", "a b", "https://x", "x/", "a..b", "*.x", "x:"])
async def test_a_service_domain_is_a_domain(runtime: FakeRuntime, tmp_path: Path, domain: str) -> None:
    assert "not a domain" in str(await refused(runtime, state_dir=tmp_path, service_domain=domain))


async def test_what_is_kept_is_not_destroyed_by_an_ephemeral_server(runtime: FakeRuntime, tmp_path: Path) -> None:
    (tmp_path / "server.db").touch()
    assert "--no-ephemeral" in (await refused(runtime, state_dir=tmp_path)).hint


async def test_a_taken_port_is_said_so_and_the_runtime_let_go(runtime: FakeRuntime, tmp_path: Path) -> None:
    listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    error = await refused(runtime, state_dir=tmp_path, port=port)
    assert f"cannot listen on 127.0.0.1 port {port}" in str(error)
    listener.close()


async def test_an_unavailable_runtime_is_said_so_with_a_hint(runtime: FakeRuntime, tmp_path: Path) -> None:
    runtime.unavailable = Unavailable(runtime="fake", reason="no user namespaces", hint="sysctl something=1")
    error = await refused(runtime, state_dir=tmp_path)
    assert "no user namespaces" in str(error)
    assert error.hint == "sysctl something=1"


def test_an_unknown_runtime_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="no runtime 'gvisor'"):
        make_runtime(ServerConfig(state_dir=tmp_path, runtime="gvisor"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_and_destroys_everything(
    runtime: FakeRuntime, tmp_path: Path, number: signal.Signals
) -> None:
    began = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(ServerConfig(state_dir=tmp_path), on_ready=began.set_result, runtime=runtime))
    ready: Ready = await began
    async with httpx.AsyncClient(base_url=ready.endpoint) as client:
        assert (await client.post("/boxes", json={})).status_code == 201
        os.kill(os.getpid(), number)
        await asyncio.wait_for(serving, 5)
        with pytest.raises(httpx.ConnectError):
            await client.get("/boxes")
    assert runtime.closed is True


async def test_an_answer_under_way_is_finished_before_the_end(runtime: FakeRuntime, tmp_path: Path) -> None:
    server = Server(ServerConfig(state_dir=tmp_path), runtime)
    ready = await server.open()
    runtime.gate.clear()
    async with httpx.AsyncClient(base_url=ready.endpoint) as client:
        creating = asyncio.create_task(client.post("/boxes", json={}))
        while not runtime.calls:
            await asyncio.sleep(0.001)
        closing = asyncio.create_task(server.aclose())
        await asyncio.sleep(0)
        runtime.gate.set()
        assert (await creating).status_code == 201
        await asyncio.wait_for(closing, 1)


async def test_the_ready_line_says_what_is_enforced(runtime: FakeRuntime, tmp_path: Path) -> None:
    server = Server(ServerConfig(state_dir=tmp_path), runtime)
    ready = await server.open()
    assert str(ready) == (
        f"listening on {ready.url}; runtime fake: memory none, cpu none, pids none, disk none, network shared, "
        "uids single, seccomp off, egress the host's network"
    )
    await server.aclose()


async def test_tls_ends_here(runtime: FakeRuntime, tmp_path: Path) -> None:
    server = Server(ServerConfig(state_dir=tmp_path, api_keys=(KEY,), tls_cert=CERTIFICATE), runtime)
    ready = await server.open()
    assert ready.url.startswith("https://")
    trusted = ssl.create_default_context(cafile=CERTIFICATE)
    async with httpx.AsyncClient(base_url=ready.endpoint, verify=trusted, headers={"x-api-key": KEY}) as client:
        box = (await client.post("/boxes", json={})).json()
        assert box["dataplane_url"] == f"{ready.endpoint}/{box['id']}"
        answer = await client.get(f"/{box['name']}/download?path=x")
        assert answer.text == f"{box['name']} GET /download?path=x"
        upload = await client.post(f"/{box['name']}/upload?path=x", content=bytes(2**20))
        assert upload.status_code == 200
    await server.aclose()


async def test_a_public_url_is_what_clients_are_told(runtime: FakeRuntime, tmp_path: Path) -> None:
    server = Server(ServerConfig(state_dir=tmp_path, public_url="https://sandboxes.example/"), runtime)
    await server.open()
    address = server.router._server.sockets[0].getsockname()  # type: ignore[union-attr]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{address[1]}/v2/sandboxes") as client:
        box = (await client.post("/boxes", json={})).json()
    assert box["dataplane_url"] == f"https://sandboxes.example/api/v2/sandboxes/{box['id']}"
    await server.aclose()


@pytest.mark.parametrize(
    "settings", [{"tls_key": CERTIFICATE}, {"tls_cert": Path("/nonexistent")}, {"tls_cert": Path(__file__)}]
)
async def test_bad_tls_files_are_said_so(runtime: FakeRuntime, tmp_path: Path, settings: dict[str, Path]) -> None:
    error = await refused(runtime, state_dir=tmp_path, **settings)
    assert "tls" in str(error) or "certificate" in str(error)


async def test_websockets_pass_through_tls(runtime: FakeRuntime, tmp_path: Path) -> None:
    server = Server(ServerConfig(state_dir=tmp_path, api_keys=(KEY,), tls_cert=CERTIFICATE), runtime)
    ready = await server.open()
    trusted = ssl.create_default_context(cafile=CERTIFICATE)
    async with httpx.AsyncClient(base_url=ready.endpoint, verify=trusted, headers={"x-api-key": KEY}) as http:
        box = (await http.post("/boxes", json={"name": "one"})).json()
    websocket = WebsocketDaemon(runtime.daemons[box["id"]])
    port = int(ready.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusted)
    client = RawClient(reader, writer)
    await upgraded(client)
    daemon_reader, daemon_writer = await websocket.accepted.get()
    writer.write(b"up" * 2**19)
    assert await daemon_reader.readexactly(2**20) == b"up" * 2**19
    daemon_writer.write(frame(b"down"))
    assert await reader.readexactly(6) == frame(b"down")
    closing = asyncio.create_task(server.aclose())
    assert await asyncio.wait_for(reader.read(), 5) == close_frame(1001)
    writer.close()
    await asyncio.wait_for(closing, 5)
    websocket.done.set()
