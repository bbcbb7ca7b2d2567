"""Tunnels and services through a bad network: whatever happens to connections, nothing is lost silently.

What arrives is exactly what was sent, or a part of it from its start and then an error, for the client and for the
program in the sandbox alike; neither of them ever takes a part for the whole, or waits for the other for ever.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import attrs
import httpx
import pytest

from sandbox_aio import AsyncSandbox, AsyncSandboxClient, SandboxClient
from tests.faults.faulty_wire import FaultyWire, faulty_wire
from tests.serving import API_KEY, Server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

SEEDS = range(20)
EXCHANGES = 6
PATIENCE = 20.0
WITNESS = Path(__file__).with_name("witness.py")


@attrs.frozen
class Witness:
    """A sandbox with the program of `witness.py`."""

    server: Server
    sandbox_id: str
    echo_port: int
    http_port: int
    token: str

    @property
    def server_port(self) -> int:
        """Where the server listens."""
        return int(self.server.origin.rpartition(":")[2])

    def http(self, port: int) -> httpx.AsyncClient:
        """A client of the service, by way of a port of this machine."""
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}/svc/{self.sandbox_id}/{self.http_port}",
            headers={"x-langsmith-sandbox-service-token": self.token},
            timeout=PATIENCE,
        )

    async def exchanges(self) -> dict[str, tuple[str, int, str]]:
        """How each exchange stands, as the program sees it, once none is open."""
        with anyio.fail_after(PATIENCE):
            async with self.http(self.server_port) as http:
                while True:
                    found = {
                        name: (how, size, digest) for name, (how, size, digest) in (await http.get("/")).json().items()
                    }
                    if "open" not in {how for how, _, _ in found.values()}:
                        return found
                    await anyio.sleep(0.05)


@pytest.fixture(scope="module")
def witness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Witness]:
    with (
        serving(tmp_path_factory.mktemp("serve")) as server,
        SandboxClient(api_endpoint=server.endpoint, api_key=API_KEY) as client,
        client.sandbox() as sandbox,
    ):
        sandbox.write("/tmp/witness.py", WITNESS.read_bytes())
        handle = sandbox.run("python3 /tmp/witness.py", wait=False, timeout=3600)
        said = next(chunk.data for chunk in handle)
        echo_port, http_port = map(int, said.split())
        token = sandbox.service(http_port).token
        assert sandbox.id is not None
        yield Witness(server, sandbox.id, echo_port, http_port, token)
        handle.kill()


def payloads(seed: int, kind: str) -> dict[str, bytes]:
    """What is exchanged, by its name, with which it begins."""
    chance = random.Random(f"{seed} {kind}")
    names = [f"{kind} {seed} {number}".ljust(15, "-") + str(number % 2) for number in range(EXCHANGES)]
    return {name: name.encode() + chance.randbytes(int(chance.expovariate(1 / 150_000))) for name in names}


def check_witnessed(sent: dict[str, bytes], whole: set[str], seen: dict[str, tuple[str, int, str]]) -> None:
    """The program took nothing for whole that was not, and saw whole what the client did."""
    for name, data in sent.items():
        how, size, digest = seen.get(name, ("unknown", 0, ""))
        if how == "whole":
            assert (size, digest) == (len(data), hashlib.sha256(data).hexdigest()), f"{name} was cut and not broken"
        assert name not in whole or how == "whole", f"{name} is {how} to the program"


async def exchange(port: int, data: bytes) -> tuple[bytes, bool]:
    """Send, end, and receive; return what came, and whether it ended in order."""
    received, ended = bytearray(), False
    try:
        async with await anyio.connect_tcp("127.0.0.1", port) as stream, anyio.create_task_group() as group:

            async def send() -> None:
                try:
                    await stream.send(data)
                    await stream.send_eof()
                except (OSError, anyio.BrokenResourceError):
                    pass  # the receiver hears of it, too

            group.start_soon(send)
            with anyio.fail_after(PATIENCE):
                while True:
                    received += await stream.receive(65536)
    except* anyio.EndOfStream:
        ended = True
    except* (ConnectionError, anyio.BrokenResourceError):
        ended = False
    return bytes(received), ended


@pytest.mark.parametrize("seed", SEEDS)
async def test_tunnels_lose_nothing_silently(witness: Witness, seed: int) -> None:
    sent = payloads(seed, "tcp")
    whole: set[str] = set()
    with faulty_wire(witness.server_port, seed) as wire:
        async with AsyncSandboxClient(api_endpoint=witness.server.endpoint, api_key=API_KEY) as client:
            url = f"http://127.0.0.1:{wire.port}/api/v2/sandboxes/{witness.sandbox_id}"
            sandbox = AsyncSandbox.from_dict({"name": "s", "dataplane_url": url}, client)
            async with sandbox.tunnel(witness.echo_port, local_port=None, max_reconnects=20) as tunnel:

                async def one(name: str) -> None:
                    received, ended = await exchange(tunnel.local_port, sent[name])
                    assert sent[name].startswith(received), f"{name}: other bytes came back"
                    if ended:
                        assert len(received) == len(sent[name]), f"{name} was cut and not broken"
                        whole.add(name)

                names = list(sent)
                for start in range(0, EXCHANGES, 3):
                    async with anyio.create_task_group() as group:
                        for name in names[start : start + 3]:
                            group.start_soon(one, name)
                await works_again(wire, tunnel.local_port)
    check_witnessed(sent, whole, await witness.exchanges())


async def works_again(wire: FaultyWire, port: int) -> None:
    """Once the network is well, the tunnel serves; what the last faults left behind may break one connection first."""
    wire.heal()
    data = bytes(range(256)) * 1000
    with anyio.fail_after(PATIENCE):
        while await exchange(port, data) != (data, True):
            await anyio.sleep(0.05)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # HTTPX forgets the iterator of an upload that was broken off
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seed", SEEDS)
async def test_services_lose_nothing_silently(witness: Witness, seed: int) -> None:
    sent = payloads(seed, "http")
    whole: set[str] = set()
    with faulty_wire(witness.server_port, seed, first_whole=0) as wire:
        async with witness.http(wire.port) as http:

            async def one(name: str) -> None:
                try:
                    with anyio.fail_after(PATIENCE):
                        answer = await http.post("/", content=sent[name])
                except httpx.TransportError as exc:
                    assert not isinstance(exc, httpx.TimeoutException), "nobody said that the connection is broken"
                    return
                assert (answer.status_code, answer.content) == (200, sent[name])
                whole.add(name)

            async with anyio.create_task_group() as group:
                for name in sent:
                    group.start_soon(one, name)
            wire.heal()
        async with witness.http(wire.port) as http:
            assert (await http.post("/", content=b"x" * 300_000)).content == b"x" * 300_000
    check_witnessed(sent, whole, await witness.exchanges())
