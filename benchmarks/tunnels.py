"""What is measured of tunnels, through their local ports, by a load that is a process of its own.

The simple ones lead to what stands behind the stub's ports; `pgbench` leads to PostgreSQL in a sandbox of a real
server, one for each client, which ends with that server.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio.to_thread

from benchmarks.subject import Subject, expect

__all__ = ["TUNNEL_WORKLOADS"]

SERVICE_PORT, POSTGRES_PORT = 7001, 5432
AS_POSTGRES = "setpriv --reuid=999 --regid=999 --clear-groups"

LOAD = """
import socket, statistics, sys, time
mode, port, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def connect(first):
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(first)
    return connection

start = time.perf_counter()
if mode == "down":
    connection = connect(b"d" + number.to_bytes(8, "big"))
    left, buffer = number, bytearray(1 << 20)
    while left:
        got = connection.recv_into(buffer)
        assert got, left
        left -= got
    print(time.perf_counter() - start)
elif mode == "up":
    connection = connect(b"u" + number.to_bytes(8, "big"))
    piece = bytes(1 << 18)
    for _ in range(number // len(piece)):
        connection.sendall(piece)
    assert connection.recv(1) == b"."
    print(time.perf_counter() - start)
elif mode == "echo":
    connection, times = connect(b"e"), []
    for _ in range(number):
        start = time.perf_counter()
        connection.sendall(bytes(64))
        got = 0
        while got < 64:
            got += len(connection.recv(64))
        times.append(time.perf_counter() - start)
    print(statistics.median(times))
else:
    for _ in range(number):
        with connect(b"e.") as connection:
            assert connection.recv(1) == b"."
    print((time.perf_counter() - start) / number)
"""

_ports: dict[int, int] = {}
"""The local port of each tunnel that this process has open, by what it leads to."""


_kept: list[Any] = []
"""Tunnels and handles that must not be collected."""


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


async def _tunnel(subject: Subject, remote_port: int) -> int:
    """Open a tunnel, which stays, and return its local port, which is not the same for every client."""
    port = _free_port()
    _kept.append(await subject.sandbox.tunnel(remote_port, local_port=port))
    return port


async def _sandbox_with(subject: Subject, command: str, ready: str, **options: Any) -> None:
    handle = await subject.sandbox.run(command, timeout=0, wait=False, **options)
    _kept.append(handle)
    async for chunk in handle:
        if ready in chunk.data:
            return


async def _service(subject: Subject) -> int:
    if SERVICE_PORT not in _ports:
        _ports[SERVICE_PORT] = await _tunnel(subject, SERVICE_PORT)
    return _ports[SERVICE_PORT]


async def _load(subject: Subject, mode: str, number: int) -> float:
    port = await _service(subject)
    command = [sys.executable, "-c", LOAD, mode, str(port), str(number)]
    done = await anyio.to_thread.run_sync(lambda: subprocess.run(command, capture_output=True, text=True, check=True))
    return float(done.stdout)


async def tunnel_down(subject: Subject, size: int) -> float:
    """Return the seconds that `size` bytes take from a program in the sandbox to one here."""
    return await _load(subject, "down", size)


async def tunnel_up(subject: Subject, size: int) -> float:
    """Return the seconds that `size` bytes take the other way."""
    return await _load(subject, "up", size)


async def tunnel_echo(subject: Subject, times: int) -> float:
    """Return the median seconds of sending 64 bytes and having them back."""
    return await _load(subject, "echo", times)


async def tunnel_connect(subject: Subject, times: int) -> float:
    """Return the seconds that it takes to connect, have one byte echoed, and close."""
    return await _load(subject, "connect", times)


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        raise FileNotFoundError("PostgreSQL is not installed: run `make deps`")
    return found[-1]


async def _postgres(subject: Subject) -> int:
    if POSTGRES_PORT not in _ports:
        programs = _programs()
        subject.sandbox = await subject.client.create_sandbox(snapshot="host")
        data = "/tmp/postgres"
        prepared = await subject.sandbox.run(
            "echo 'postgres:x:999:999::/tmp:/bin/sh' >>/etc/passwd; echo 'postgres:x:999:' >>/etc/group;"
            f" mkdir {data}; chown 999:999 {data};"
            f" {AS_POSTGRES} {programs}/initdb -D {data} -A trust -U postgres --no-sync;"
            f" echo 'fsync = off' >>{data}/postgresql.conf",
            timeout=60,
        )
        expect(prepared.exit_code, 0, "initdb")
        command = f"{AS_POSTGRES} {programs}/postgres -D {data} -k /tmp"
        await _sandbox_with(subject, command, "ready to accept connections")
        _ports[POSTGRES_PORT] = port = await _tunnel(subject, POSTGRES_PORT)
        await _pgbench(port, "-i", "-q")
    return _ports[POSTGRES_PORT]


async def _pgbench(port: int, *options: str) -> str:
    program = [str(_programs() / "pgbench"), "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-n", *options]
    command = [*program, "postgres"]
    done = await anyio.to_thread.run_sync(lambda: subprocess.run(command, capture_output=True, text=True, check=True))
    return done.stdout


async def pgbench(subject: Subject, options: str, seconds: int) -> float:
    """Return the seconds that one transaction takes, on average, when pgbench runs with these options."""
    port = await _postgres(subject)
    text = await _pgbench(port, *options.split(), "-T", str(seconds))
    rates = [float(line.split()[2]) for line in text.splitlines() if line.startswith("tps = ")]
    return 1 / statistics.mean(rates)


TUNNEL_WORKLOADS = (tunnel_down, tunnel_up, tunnel_echo, tunnel_connect, pgbench)
