"""Tunnels in plain Python, against the real daemon (wire protocol, section 5)."""

from __future__ import annotations

import errno
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from sandbox_aio import (
    Sandbox,
    SandboxClient,
    SandboxConnectionError,
    TunnelConnectionRefusedError,
    TunnelLocalPortError,
)
from tests.daemon.process import SECRET, Daemon, daemon_on_port
from tests.daemon.test_raw_connection import free_port
from tests.daemon.tunnelling import PATIENCE, Listener, echo, listening, read_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon_on_port(tmp_path_factory.mktemp("daemon")) as started:
        yield started


@pytest.fixture
def client() -> Iterator[SandboxClient]:
    with SandboxClient(api_endpoint="http://127.0.0.1:9/unused", headers={"x-sandbox-secret": SECRET}) as made:
        yield made


@pytest.fixture
def sandbox(client: SandboxClient, daemon: Daemon) -> Sandbox:
    return Sandbox.from_dict({"name": "s", "dataplane_url": f"http://127.0.0.1:{daemon.port}"}, client)


def port_of(service: Listener) -> int:
    port = service.target.port
    assert port is not None
    return port


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def exchange(port: int, data: bytes) -> bytes:
    """Send, end, and read to the end, in one connection. `data` fits into the buffers on the way."""
    with connect(port) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return read_all(connection)


def test_a_block_serves_a_tunnel_and_frees_its_port(sandbox: Sandbox) -> None:
    def count(connection: socket.socket) -> None:
        connection.sendall(b"%d" % len(read_all(connection)))

    with listening(count) as service:
        with sandbox.tunnel(port_of(service), local_port=None) as tunnel:
            assert tunnel.remote_port == port_of(service)
            assert exchange(tunnel.local_port, bytes(300_000)) == b"300000"
            counted = tunnel.statistics()
            assert (counted.total_connections, counted.bytes_sent, counted.bytes_received) == (1, 300_000, 6)
        with pytest.raises(ConnectionRefusedError):
            connect(tunnel.local_port)
        with sandbox.tunnel(port_of(service), local_port=tunnel.local_port) as again:
            assert exchange(again.local_port, b"x") == b"1"


def test_threads_use_two_tunnels_at_once(sandbox: Sandbox) -> None:
    with listening(echo) as first, listening(echo) as second, ThreadPoolExecutor(10) as threads:
        with (
            sandbox.tunnel(port_of(first), local_port=None) as one,
            sandbox.tunnel(port_of(second), local_port=None) as two,
        ):
            data = [b"%d " % number * 1000 for number in range(100)]
            ports = [one.local_port, two.local_port] * 50
            assert list(threads.map(exchange, ports, data)) == data


def test_an_open_tunnel_has_no_thread_but_the_clients(sandbox: Sandbox) -> None:
    with listening(echo) as service, sandbox.tunnel(port_of(service), local_port=None) as tunnel:
        with connect(tunnel.local_port) as first:
            first.sendall(b"x")
            assert first.recv(1) == b"x"
            before = threading.active_count()
            for _ in range(20):
                assert exchange(tunnel.local_port, b"y") == b"y"
            for thread in service.threads[1:]:
                thread.join(PATIENCE)
            assert threading.active_count() == before


def test_a_refused_connection_is_reset_and_a_check_raises(sandbox: Sandbox) -> None:
    port = free_port()
    with sandbox.tunnel(port, local_port=None) as tunnel:
        with pytest.raises(ConnectionResetError), connect(tunnel.local_port) as connection:
            connection.recv(1)
        assert isinstance(tunnel.statistics().last_error, TunnelConnectionRefusedError)
        with pytest.raises(TunnelConnectionRefusedError) as caught:
            tunnel.check()
        assert caught.value.port == port


def test_a_unix_socket_is_found_by_its_path(sandbox: Sandbox, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with listening(echo, socket.AF_UNIX, path), sandbox.tunnel(remote_path=path) as tunnel:
        assert (tunnel.remote_port, tunnel.remote_path) == (None, path)
        assert exchange(tunnel.local_port, b"hi") == b"hi"


def test_closing_the_client_closes_a_tunnel_without_a_block(daemon: Daemon) -> None:
    client = SandboxClient(api_endpoint="http://127.0.0.1:9/unused", headers={"x-sandbox-secret": SECRET})
    sandbox = Sandbox.from_dict({"name": "s", "dataplane_url": f"http://127.0.0.1:{daemon.port}"}, client)
    with listening(echo) as service:
        tunnel = sandbox.tunnel(port_of(service), local_port=None)
        with connect(tunnel.local_port) as connection:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            client.close()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        with pytest.raises(ConnectionRefusedError):
            connect(tunnel.local_port)


def test_a_block_may_outlive_its_client(daemon: Daemon) -> None:
    client = SandboxClient(api_endpoint="http://127.0.0.1:9/unused", headers={"x-sandbox-secret": SECRET})
    sandbox = Sandbox.from_dict({"name": "s", "dataplane_url": f"http://127.0.0.1:{daemon.port}"}, client)
    with sandbox.tunnel(free_port(), local_port=None) as tunnel:
        client.close()
        with pytest.raises(ConnectionRefusedError):
            connect(tunnel.local_port)


def test_what_cannot_be_opened_says_why(client: SandboxClient, sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="port"):
        sandbox.tunnel(65536)
    with listening(echo) as other, pytest.raises(TunnelLocalPortError, match="choose another local_port") as caught:
        sandbox.tunnel(5432, local_port=port_of(other))
    assert caught.value.errno == errno.EADDRINUSE
    nowhere = Sandbox.from_dict({"name": "s", "dataplane_url": f"http://127.0.0.1:{free_port()}"}, client)
    with pytest.raises(SandboxConnectionError):
        nowhere.tunnel(80, local_port=None)
