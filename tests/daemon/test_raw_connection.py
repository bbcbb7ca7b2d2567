"""`GET /connect`: a connection to a port of the sandbox, as the server's proxy asks for it."""

from __future__ import annotations

import json
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from tests.daemon.process import SECRET
from tests.daemon.tunnelling import PATIENCE, echo, listening, read_all

if TYPE_CHECKING:
    from pathlib import Path

    from tests.daemon.process import Daemon


def ask(
    daemon: Daemon, query: str, *, secret: str = SECRET, upgrade: str = "tcp", behind: bytes = b""
) -> socket.socket:
    """Send a request for a raw connection."""
    connection = daemon.connect()
    head = f"GET /connect?{query} HTTP/1.1\r\nHost: x\r\nx-sandbox-secret: {secret}\r\n"
    head += f"Connection: Upgrade\r\nUpgrade: {upgrade}\r\n\r\n"
    connection.sendall(head.encode() + behind)
    return connection


def head_of(connection: socket.socket) -> bytes:
    """Read an answer's head."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = connection.recv(1)
        assert piece, head
        head += piece
    return head


def connected(daemon: Daemon, query: str, behind: bytes = b"") -> socket.socket:
    """A connection that has become a raw one."""
    connection = ask(daemon, query, behind=behind)
    assert head_of(connection).startswith(b"HTTP/1.1 101 ")
    return connection


def refusal(daemon: Daemon, query: str, **options: str) -> tuple[int, str, str]:
    """The status, type and text of a refusal."""
    with ask(daemon, query, **options) as connection:  # type: ignore[arg-type]
        head = head_of(connection)
        size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = b""
        while len(body) < size:
            body += connection.recv(size)
        detail = json.loads(body)["detail"]
        return int(head.split()[1]), detail["error"], detail["message"]


def test_bytes_pass_both_ways_and_so_do_ends(daemon: Daemon) -> None:
    with listening(echo) as service, connected(daemon, f"port={service.target.port}", b"early ") as connection:
        connection.sendall(b"and late")
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b"early and late"


def test_large_data_passes_both_ways_at_once(daemon: Daemon) -> None:
    data = bytes(range(256)) * (32 * 1024)
    with listening(echo) as service, connected(daemon, f"port={service.target.port}") as connection:

        def send() -> None:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        assert read_all(connection) == data
        sender.join(PATIENCE)


def test_an_answer_may_follow_the_end_of_the_request(daemon: Daemon) -> None:
    def count(connection: socket.socket) -> None:
        connection.sendall(b"%d bytes" % len(read_all(connection)))

    with listening(count) as service, connected(daemon, f"port={service.target.port}") as connection:
        connection.sendall(bytes(1000))
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b"1000 bytes"


def test_a_service_that_ends_first_still_gets_the_rest(daemon: Daemon) -> None:
    got: list[bytes] = []

    def speak_first(connection: socket.socket) -> None:
        connection.sendall(b"bye")
        connection.shutdown(socket.SHUT_WR)
        got.append(read_all(connection))

    with listening(speak_first) as service, connected(daemon, f"port={service.target.port}") as connection:
        assert read_all(connection) == b"bye"
        connection.sendall(b"thanks")
    assert got == [b"thanks"]


def test_a_client_that_vanishes_breaks_the_connection_off(daemon: Daemon) -> None:
    outcome: list[object] = []
    begun = threading.Event()

    def wait(connection: socket.socket) -> None:
        begun.set()
        try:
            outcome.append(connection.recv(1))
        except OSError as error:
            outcome.append(type(error))

    with listening(wait) as service:
        connection = connected(daemon, f"port={service.target.port}")
        assert begun.wait(PATIENCE)
        connection.close()
    assert outcome in ([b""], [ConnectionResetError])


def test_a_service_that_breaks_off_ends_the_connection(daemon: Daemon) -> None:
    def break_off(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with listening(break_off) as service, connected(daemon, f"port={service.target.port}") as connection:
        connection.sendall(b"xx")
        assert connection.recv(1) == b""


def test_a_slow_service_holds_the_client_back(daemon: Daemon) -> None:
    go_on = threading.Event()
    sizes: list[int] = []

    def sleep_then_read(connection: socket.socket) -> None:
        assert go_on.wait(PATIENCE)
        sizes.append(len(read_all(connection)))

    with listening(sleep_then_read) as service, connected(daemon, f"port={service.target.port}") as connection:
        connection.settimeout(0.5)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 1 << 28:
                sent += connection.send(bytes(1 << 16))
        assert sent < 1 << 25
        go_on.set()
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b""
    assert sizes == [sent]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_either_loopback_address_is_found(daemon: Daemon, family: socket.AddressFamily) -> None:
    address = ("127.0.0.1" if family == socket.AF_INET else "::1", 0)
    with listening(echo, family, address) as service, connected(daemon, f"port={service.target.port}") as connection:
        connection.sendall(b"hi")
        assert connection.recv(2) == b"hi"


def test_a_unix_socket_is_found_by_its_path(daemon: Daemon, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with listening(echo, socket.AF_UNIX, path), connected(daemon, f"path={path}") as connection:
        connection.sendall(b"hi")
        assert connection.recv(2) == b"hi"


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def test_a_port_where_nothing_listens_is_refused(daemon: Daemon) -> None:
    status, error, message = refusal(daemon, f"port={free_port()}")
    assert (status, error) == (502, "ConnectionRefused")
    assert "nothing listens there" in message


def test_with_patience_a_service_may_come_late(daemon: Daemon) -> None:
    port = free_port()
    connection = ask(daemon, f"port={port}&patience=5")
    connection.settimeout(0.2)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    connection.settimeout(PATIENCE)
    with connection, listening(echo, address=("127.0.0.1", port)):
        assert head_of(connection).startswith(b"HTTP/1.1 101 ")
        connection.sendall(b"hi")
        assert connection.recv(2) == b"hi"
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


@pytest.mark.parametrize(
    "query",
    ["", "port=0", "port=65536", "port=http", "port=80&patience=-1", "port=80&patience=nan", "port=80&patience=6",
     "path=relative", "port=80&path=/x"],
)  # fmt: skip
def test_an_impossible_target_is_a_bad_request(daemon: Daemon, query: str) -> None:
    assert refusal(daemon, query)[:2] == (400, "InvalidRequest")


def test_without_the_secret_nothing_is_dialled(daemon: Daemon) -> None:
    assert refusal(daemon, "port=80", secret="wrong")[:2] == (401, "Unauthorized")


def test_only_a_raw_upgrade_is_served(daemon: Daemon) -> None:
    assert refusal(daemon, "port=80", upgrade="websocket")[:2] == (400, "InvalidRequest")
