"""`/tunnel` against a daemon process (wire protocol, section 5)."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

from sandbox_aio.protocol.tunnel import StreamRefused, TunnelClosed
from sandbox_aio.protocol.tunnel_preamble import TunnelStatus, TunnelTarget
from sandbox_aio.protocol.yamux_events import StreamReset, StreamWritable, YamuxLimits
from tests.daemon import process
from tests.daemon.test_raw_connection import free_port
from tests.daemon.tunnelling import PATIENCE, Tunnel, echo, listening, read_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.daemon.process import Daemon


@pytest.fixture
def tunnel(daemon: Daemon) -> Iterator[Tunnel]:
    """A tunnel into the common daemon."""
    with daemon.connect() as connection:
        yield Tunnel(connection)


def test_a_stream_reaches_a_port_and_both_ends_pass(tunnel: Tunnel) -> None:
    with listening(echo) as service:
        stream_id = tunnel.connect(service.target)
        tunnel.send(stream_id, b"hello")
        tunnel.until(lambda: tunnel.received.get(stream_id) == b"hello")
        tunnel.end(stream_id)
        assert tunnel.read_to_end(stream_id) == b"hello"
        assert tunnel.core.stream_ids == []


def test_megabytes_pass_both_ways(tunnel: Tunnel) -> None:
    data = bytes(range(256)) * (16 * 1024)
    with listening(echo) as service:
        stream_id = tunnel.connect(service.target)
        tunnel.send(stream_id, data)
        tunnel.end(stream_id)
        assert tunnel.read_to_end(stream_id) == data


def test_data_may_follow_the_preamble_at_once(tunnel: Tunnel) -> None:
    with listening(echo) as service:
        stream_id = tunnel.open(service.target)
        tunnel.send(stream_id, b"early")
        tunnel.end(stream_id)
        assert tunnel.read_to_end(stream_id) == b"early"


def test_a_reply_may_follow_the_end_of_the_request(tunnel: Tunnel) -> None:
    def count(connection: socket.socket) -> None:
        connection.sendall(b"%d" % len(read_all(connection)))

    with listening(count) as service:
        stream_id = tunnel.connect(service.target)
        tunnel.send(stream_id, bytes(300_000))
        tunnel.end(stream_id)
        assert tunnel.read_to_end(stream_id) == b"300000"


def test_a_service_may_end_first(tunnel: Tunnel) -> None:
    got: list[bytes] = []

    def speak_first(connection: socket.socket) -> None:
        connection.sendall(b"bye")
        connection.shutdown(socket.SHUT_WR)
        got.append(read_all(connection))

    with listening(speak_first) as service:
        stream_id = tunnel.connect(service.target)
        assert tunnel.read_to_end(stream_id) == b"bye"
        tunnel.send(stream_id, b"thanks")
        tunnel.end(stream_id)
        assert tunnel.core.stream_ids == []
    assert got == [b"thanks"]


def test_many_streams_at_once_keep_their_bytes_apart(tunnel: Tunnel) -> None:
    with listening(echo) as service:
        streams = [tunnel.open(service.target) for _ in range(100)]
        for stream_id in streams:
            tunnel.send(stream_id, b"%d " % stream_id * 100)
            tunnel.end(stream_id)
        for stream_id in streams:
            assert tunnel.read_to_end(stream_id) == b"%d " % stream_id * 100


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_either_loopback_address_is_found(tunnel: Tunnel, family: socket.AddressFamily) -> None:
    with listening(echo, family, ("127.0.0.1" if family == socket.AF_INET else "::1", 0)) as service:
        stream_id = tunnel.connect(service.target)
        tunnel.end(stream_id)
        assert tunnel.read_to_end(stream_id) == b""


def test_a_unix_socket_is_found_by_its_path(tunnel: Tunnel, tmp_path: Path) -> None:
    with listening(echo, socket.AF_UNIX, str(tmp_path / "s")) as service:
        stream_id = tunnel.connect(service.target)
        tunnel.send(stream_id, b"hi")
        tunnel.end(stream_id)
        assert tunnel.read_to_end(stream_id) == b"hi"


@pytest.mark.parametrize("path", [None, "/nothing/here"])
def test_where_nothing_listens_the_stream_is_refused(tunnel: Tunnel, path: str | None) -> None:
    target = TunnelTarget(path=path) if path else TunnelTarget(port=free_port())
    stream_id = tunnel.open(target)
    tunnel.until(lambda: StreamRefused(stream_id, TunnelStatus.REFUSED) in tunnel.seen)
    with listening(echo) as service:  # the tunnel goes on
        stream_id = tunnel.connect(service.target)
        tunnel.end(stream_id)
        assert tunnel.read_to_end(stream_id) == b""


def test_a_reset_reaches_the_service(tunnel: Tunnel) -> None:
    outcome: list[object] = []

    def wait(connection: socket.socket) -> None:
        try:
            outcome.append(connection.recv(1))
        except OSError as error:
            outcome.append(type(error))

    with listening(wait) as service:
        stream_id = tunnel.connect(service.target)
        tunnel.core.reset_stream(stream_id)
        tunnel.flush()
    assert outcome == [ConnectionResetError]


def test_a_reset_of_the_service_reaches_the_client(tunnel: Tunnel) -> None:
    def break_off(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with listening(break_off) as service:
        stream_id = tunnel.connect(service.target)
        tunnel.send(stream_id, b"xx")
        tunnel.until(lambda: StreamReset(stream_id) in tunnel.seen)
    assert tunnel.core.stream_ids == []


def test_many_services_that_send_at_once_do_not_end_the_tunnel(daemon: Daemon, tunnel: Tunnel) -> None:
    go_on = threading.Event()
    sent = threading.Semaphore(0)

    def flood(connection: socket.socket) -> None:
        assert go_on.wait(PATIENCE)
        rest = memoryview(bytes(512 * 1024))
        rest = rest[connection.send(rest) :]
        sent.release()
        connection.sendall(rest)

    assert daemon.process is not None
    with listening(flood) as service:
        streams = [tunnel.connect(service.target) for _ in range(60)]
        daemon.process.send_signal(signal.SIGSTOP)  # so that it finds all of it in one turn of its loop
        try:
            go_on.set()
            for _ in streams:
                assert sent.acquire(timeout=PATIENCE)
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        for stream_id in streams:
            assert tunnel.read_to_end(stream_id) == bytes(512 * 1024)


def test_the_end_of_the_tunnel_resets_every_connection(daemon: Daemon) -> None:
    outcome: list[object] = []
    over = threading.Semaphore(0)

    def wait(connection: socket.socket) -> None:
        try:
            outcome.append(connection.recv(1))
        except OSError as error:
            outcome.append(type(error))
        over.release()

    with listening(wait) as service:
        with daemon.connect() as connection:
            tunnel = Tunnel(connection)
            for _ in range(3):
                tunnel.connect(service.target)
        for _ in range(3):  # a connection may be made before the service has accepted it
            assert over.acquire(timeout=PATIENCE)
    assert outcome == [ConnectionResetError] * 3


def test_a_service_that_reads_nothing_gets_no_more_than_the_windows(tunnel: Tunnel) -> None:
    go_on = threading.Event()
    sizes: list[int] = []

    def sleep_then_read(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        assert go_on.wait(PATIENCE)
        sizes.append(len(read_all(connection)))

    with listening(sleep_then_read) as service, listening(echo) as other:
        stream_id = tunnel.connect(service.target)
        sent = 0
        while True:
            size = tunnel.core.send_window(stream_id)
            if not size:
                # Another stream's turn-around says that the daemon has had its chance to grant credit.
                probe = tunnel.connect(other.target)
                tunnel.end(probe)
                tunnel.read_to_end(probe)
                if not tunnel.core.send_window(stream_id):
                    break
                continue
            tunnel.core.send_data(stream_id, bytes(size))
            tunnel.flush()
            sent += size
            assert sent < 1 << 26
        go_on.set()
        tunnel.until(lambda: StreamWritable(stream_id) in tunnel.seen)
        tunnel.end(stream_id)
        assert tunnel.read_to_end(stream_id) == b""
    assert sizes == [sent]


def test_a_client_that_grants_no_credit_holds_the_service_back(daemon: Daemon) -> None:
    sent: list[int] = []
    begun = threading.Event()

    def flood(connection: socket.socket) -> None:
        begun.set()
        connection.settimeout(0.5)
        total = 0
        try:
            while total < 1 << 26:
                total += connection.send(bytes(65536))
        except TimeoutError:
            pass
        sent.append(total)

    with daemon.connect() as connection, listening(flood) as service:
        tunnel = Tunnel(connection, YamuxLimits(max_window=256 * 1024))
        tunnel.connect(service.target)
        assert begun.wait(PATIENCE)
        service.threads[0].join(PATIENCE)
    assert sent[0] < 1 << 24


def test_a_daemon_that_ends_says_so(own_daemon: Callable[..., AbstractContextManager[Daemon]]) -> None:
    with own_daemon() as daemon, daemon.connect() as connection:
        tunnel = Tunnel(connection)
        assert daemon.process is not None
        daemon.process.terminate()
        while not any(isinstance(event, TunnelClosed) for event in tunnel.seen):
            tunnel.turn()
        closed = tunnel.seen[-1]
        assert closed == TunnelClosed(reason="the sandbox is shutting down")
        assert daemon.process.wait(PATIENCE) == 0  # before it is told once more to end
        daemon.process = None


def test_too_many_streams_are_refused_one_by_one(own_daemon: Callable[..., AbstractContextManager[Daemon]]) -> None:
    with own_daemon(limits={"tunnel_streams": 2}) as daemon, daemon.connect() as connection, listening(echo) as service:
        tunnel = Tunnel(connection)
        first, second = tunnel.connect(service.target), tunnel.connect(service.target)
        third = tunnel.open(service.target)
        tunnel.until(lambda: StreamRefused(third, None) in tunnel.seen)
        for stream_id in (first, second):
            tunnel.end(stream_id)
            assert tunnel.read_to_end(stream_id) == b""


def test_a_thousand_connections_leave_nothing_behind(daemon: Daemon, tunnel: Tunnel) -> None:
    assert daemon.process is not None
    with listening(echo) as service:
        stream_id = tunnel.connect(service.target)
        tunnel.end(stream_id)
        tunnel.read_to_end(stream_id)
        before = open_files(daemon.process.pid)
        for _ in range(10):
            streams = [tunnel.open(service.target) for _ in range(100)]
            for stream_id in streams:
                tunnel.send(stream_id, b"x")
                tunnel.end(stream_id)
            for stream_id in streams:
                assert tunnel.read_to_end(stream_id) == b"x"
    assert tunnel.core.stream_ids == []
    assert open_files(daemon.process.pid) <= before


def test_a_service_that_never_takes_the_rest_is_broken_off(
    own_daemon: Callable[..., AbstractContextManager[Daemon]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    patient = "import sandbox_aio.daemon.tunnel_socket as t; t._HALF_CLOSED_SECONDS, t._LOOK_SECONDS = 0.2, 0.1"
    monkeypatch.setattr(
        process, "_PROGRAM", process._PROGRAM.replace("sys.path[:] = []", f"{patient}\nsys.path[:] = []")
    )
    go_on = threading.Event()
    got: list[int] = []

    def end_and_wait(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_WR)
        assert go_on.wait(PATIENCE)
        got.append(len(read_all(connection)))

    size = 256 * 1024  # more than a unix socket holds
    with own_daemon() as daemon, listening(end_and_wait, socket.AF_UNIX, str(tmp_path / "s")) as service:
        assert daemon.process is not None
        with daemon.connect() as connection:
            tunnel = Tunnel(connection)
            before = open_files(daemon.process.pid)
            stream_id = tunnel.connect(service.target)
            assert tunnel.read_to_end(stream_id) == b""
            tunnel.send(stream_id, bytes(size))
            tunnel.end(stream_id)
            assert tunnel.core.stream_ids == []
            deadline = time.monotonic() + PATIENCE
            while open_files(daemon.process.pid) > before:
                assert time.monotonic() < deadline
                time.sleep(0.005)
        go_on.set()
    assert got[0] < size


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
