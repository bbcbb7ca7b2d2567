"""The official Python client's tunnels, blocking and async, to programs in a sandbox of our server (wire protocol,
section 5).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.faulty_wire import faulty_wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.serving import Server

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # it calls what `websockets` has deprecated
]

MIB = 1 << 20
PATIENCE = 20.0

ECHO = """
import asyncio

async def echo(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        pass
    writer.close()

async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""
"""Sends back what it is sent."""

SPEAKER = ECHO.replace("await reader.read(65536)", "bytes(3_000_000)").replace("drain()", "drain()\n            break")
"""Says three million bytes, and ends."""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def start(sandbox: Any, program: str) -> int:
    """Start a program that says on which port it listens; return that."""
    await sandbox.write("/tmp/program.py", program)
    await sandbox.run("python3 /tmp/program.py >/tmp/port 2>&1 &")
    deadline = time.monotonic() + PATIENCE
    while not (said := (await sandbox.read("/tmp/port")).strip()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    return int(said)


@contextlib.asynccontextmanager
async def tunnel_to(sandbox: Any, remote_port: int, **options: Any) -> AsyncIterator[int]:
    """Open a tunnel on a port that is free; yield that port."""
    tunnel = await sandbox.tunnel(remote_port, local_port=free_port(), **options)
    try:
        yield tunnel.local_port
    finally:
        tunnel = getattr(tunnel, "_blocking", tunnel)
        await asyncio.to_thread(tunnel.close)


async def exchange(port: int, data: bytes) -> bytes:
    """Send, and receive until as much has come back, or the end: the official client half-closes nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            writer.write(data)
            while len(received) < len(data) and (piece := await reader.read(1 << 18)):
                received += piece
    finally:
        writer.close()
    return bytes(received)


async def test_echo(sandbox: Any) -> None:
    async with tunnel_to(sandbox, await start(sandbox, ECHO)) as port:
        assert await exchange(port, b"hello") == b"hello"


async def test_eight_mebibytes_each_way(sandbox: Any) -> None:
    data = random.Random(1).randbytes(8 * MIB)
    async with tunnel_to(sandbox, await start(sandbox, ECHO)) as port:
        assert await exchange(port, data) == data


async def test_many_connections_keep_their_bytes_apart(sandbox: Any) -> None:
    async with tunnel_to(sandbox, await start(sandbox, ECHO)) as port:
        for _ in range(5):
            sent = [b"%d " % number * 500 for number in range(20)]
            assert await asyncio.gather(*(exchange(port, data) for data in sent)) == sent


async def test_a_refused_port_closes_the_local_connection(sandbox: Any) -> None:
    async with tunnel_to(sandbox, free_port()) as port:
        with contextlib.suppress(ConnectionResetError):  # it closes the connection and leaves "x" unread
            assert await exchange(port, b"x") == b""


async def test_what_a_program_says_before_it_ends_arrives(sandbox: Any) -> None:
    async with tunnel_to(sandbox, await start(sandbox, SPEAKER)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(PATIENCE):
            assert await reader.read() == bytes(3_000_000)
        writer.close()


async def test_two_tunnels_at_once(sandbox: Any) -> None:
    remote = await start(sandbox, ECHO)
    async with tunnel_to(sandbox, remote) as one, tunnel_to(sandbox, remote) as other:
        assert [*await asyncio.gather(exchange(one, b"one"), exchange(other, b"other"))] == [b"one", b"other"]


async def test_a_tunnel_is_connected_anew_after_a_cut(
    sandbox: Any, make_client: Callable[..., Any], server: Server
) -> None:
    remote = await start(sandbox, ECHO)
    with faulty_wire(int(server.origin.rpartition(":")[2]), seed=0) as wire:
        wire.heal()
        async with make_client(api_endpoint=f"http://127.0.0.1:{wire.port}/api/v2/sandboxes") as through:
            behind = await through.get_sandbox(sandbox.name)
            async with tunnel_to(behind, remote) as port:
                assert await exchange(port, b"before") == b"before"
                wire.cut()
                received = b""
                while received != b"after":  # the client notices a cut when it comes to it
                    with contextlib.suppress(ConnectionError):
                        received = await exchange(port, b"after")


async def test_a_connection_that_is_open_at_a_cut_ends(
    sandbox: Any, make_client: Callable[..., Any], server: Server
) -> None:
    remote = await start(sandbox, ECHO)
    with faulty_wire(int(server.origin.rpartition(":")[2]), seed=0) as wire:
        wire.heal()
        async with make_client(api_endpoint=f"http://127.0.0.1:{wire.port}/api/v2/sandboxes") as through:
            behind = await through.get_sandbox(sandbox.name)
            async with tunnel_to(behind, remote) as port:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"x")
                assert await reader.read(1) == b"x"
                wire.cut()
                async with asyncio.timeout(PATIENCE):
                    with contextlib.suppress(ConnectionError):
                        assert await reader.read() == b""
                writer.close()
