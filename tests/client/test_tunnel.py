"""Tunnels, on both event loops, against the real daemon (wire protocol, section 5)."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from sandbox_aio import (
    AsyncSandbox,
    AsyncSandboxClient,
    LocalProtocolError,
    SandboxAuthenticationError,
    SandboxConnectionError,
    TunnelConnectionRefusedError,
    TunnelLocalPortError,
)
from sandbox_aio.client import tunnel as tunnels
from sandbox_aio.drivers import local_side
from sandbox_aio.drivers import tunnel as driver
from sandbox_aio.protocol.yamux_events import YamuxLimits
from tests.client.checkpoints import cancel_at
from tests.daemon.process import SECRET, Daemon, daemon_on_port
from tests.daemon.test_raw_connection import free_port
from tests.daemon.tunnelling import PATIENCE, echo, listening, read_all
from tests.wire import wire_to

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from pathlib import Path

    from sandbox_aio.client.tunnel import AsyncTunnel, PendingTunnel

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon_on_port(tmp_path_factory.mktemp("daemon")) as started:
        yield started


@pytest.fixture
async def client() -> AsyncGenerator[AsyncSandboxClient]:
    async with AsyncSandboxClient(
        api_endpoint="http://127.0.0.1:9/unused", headers={"x-sandbox-secret": SECRET}
    ) as made:
        yield made


def sandbox_at(client: AsyncSandboxClient, port: int) -> AsyncSandbox:
    """A sandbox whose data plane is that port."""
    return AsyncSandbox.from_dict({"name": "s", "dataplane_url": f"http://127.0.0.1:{port}"}, client)


@pytest.fixture
def sandbox(client: AsyncSandboxClient, daemon: Daemon) -> AsyncSandbox:
    return sandbox_at(client, daemon.port)


def port_of(listener: Any) -> int:
    port: int = listener.target.port
    return port


@contextlib.contextmanager
def full_backlog() -> Iterator[int]:
    """A port that neither accepts a connection nor refuses one."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Let the process open nothing; what is open stays so."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        lowest = os.dup(0)
        stack.callback(os.close, lowest)
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        yield


async def exchange(port: int, data: bytes) -> bytes:
    """Send, end, and read to the end, in one connection."""
    async with await anyio.connect_tcp("127.0.0.1", port) as stream, anyio.create_task_group() as group:

        async def send() -> None:
            await stream.send(data)
            await stream.send_eof()

        group.start_soon(send)
        received = bytearray()
        try:
            while True:
                received += await stream.receive(262_144)
        except anyio.EndOfStream:
            return bytes(received)
    raise AssertionError


async def until(so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    with anyio.fail_after(PATIENCE):
        while not so():
            await anyio.sleep(0.005)


async def test_a_connection_reaches_the_port_and_ends_pass_one_by_one(sandbox: AsyncSandbox) -> None:
    def count(connection: socket.socket) -> None:
        connection.sendall(b"%d" % len(read_all(connection)))

    with listening(count) as service:
        async with sandbox.tunnel(port_of(service), local_port=None) as tunnel:
            assert await exchange(tunnel.local_port, bytes(300_000)) == b"300000"
            await until(lambda: tunnel.statistics().open_connections == 0)
            counted = tunnel.statistics()
            assert (counted.total_connections, counted.bytes_sent, counted.bytes_received) == (1, 300_000, 6)
            assert counted.last_error is None


async def test_megabytes_pass_both_ways_at_once(sandbox: AsyncSandbox) -> None:
    data = bytes(range(256)) * (64 * 1024)
    with listening(echo) as service:
        async with sandbox.tunnel(port_of(service), local_port=None) as tunnel:
            assert await exchange(tunnel.local_port, data) == data


async def test_the_service_may_end_first(sandbox: AsyncSandbox) -> None:
    got: list[bytes] = []

    def speak_first(connection: socket.socket) -> None:
        connection.sendall(b"bye")
        connection.shutdown(socket.SHUT_WR)
        got.append(read_all(connection))

    with listening(speak_first) as service:
        async with sandbox.tunnel(port_of(service), local_port=None) as tunnel:
            async with await anyio.connect_tcp("127.0.0.1", tunnel.local_port) as stream:
                assert await stream.receive() == b"bye"
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()
                await stream.send(b"thanks")
                await stream.send_eof()
                await until(lambda: got == [b"thanks"])
            await until(lambda: tunnel.statistics().open_connections == 0)


async def test_two_hundred_connections_at_once_keep_their_bytes_apart(sandbox: AsyncSandbox) -> None:
    with listening(echo) as service:
        async with sandbox.tunnel(port_of(service), local_port=None) as tunnel:

            async def one(number: int) -> None:
                data = b"%d " % number * 3000
                assert await exchange(tunnel.local_port, data) == data

            async with anyio.create_task_group() as group:
                for number in range(200):
                    group.start_soon(one, number)
            await until(lambda: tunnel.statistics().open_connections == 0)
            assert tunnel.statistics().total_connections == 200
            assert not tunnel._driver._streams


async def test_a_thousand_connections_leave_nothing_behind(sandbox: AsyncSandbox) -> None:
    before = threading.active_count()
    with listening(echo) as service:
        async with sandbox.tunnel(port_of(service), local_port=None) as tunnel:
            most = 0

            async def some() -> None:
                nonlocal most
                for _ in range(50):
                    assert await exchange(tunnel.local_port, b"x") == b"x"
                    most = max(most, tunnel.statistics().open_connections)

            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(some)
            await until(lambda: tunnel.statistics().open_connections == 0)
            assert tunnel.statistics().total_connections == 1000
            assert not tunnel._driver._streams
            assert tunnel._driver._tunnel is not None
            assert tunnel._driver._tunnel.stream_ids == []
            service.threads.clear()
    await until(lambda: threading.active_count() <= before)


async def test_two_tunnels_at_once(sandbox: AsyncSandbox) -> None:
    with listening(echo) as first, listening(lambda connection: connection.sendall(b"second")) as second:
        async with (
            sandbox.tunnel(port_of(first), local_port=None) as one,
            sandbox.tunnel(port_of(second), local_port=None) as two,
        ):
            assert await exchange(one.local_port, b"first") == b"first"
            assert await exchange(two.local_port, b"") == b"second"


async def test_a_service_on_ipv6_alone_is_found(sandbox: AsyncSandbox) -> None:
    with listening(echo, socket.AF_INET6, ("::1", 0)) as service:
        async with sandbox.tunnel(port_of(service), local_port=None) as tunnel:
            assert await exchange(tunnel.local_port, b"six") == b"six"


async def test_a_unix_socket_is_found_by_its_path(sandbox: AsyncSandbox, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with listening(echo, socket.AF_UNIX, path):
        async with sandbox.tunnel(remote_path=path) as tunnel:
            assert (tunnel.remote_port, tunnel.remote_path) == (None, path)
            assert await exchange(tunnel.local_port, b"hi") == b"hi"
            await tunnel.check()


async def test_a_refused_connection_is_reset_and_says_why(
    sandbox: AsyncSandbox, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    async with sandbox.tunnel(port, local_port=None) as tunnel:
        async with await anyio.connect_tcp("127.0.0.1", tunnel.local_port) as stream:
            with pytest.raises(anyio.BrokenResourceError):
                await stream.receive()
        counted = tunnel.statistics()
        assert (counted.open_connections, counted.refused_connections) == (0, 1)
        assert isinstance(counted.last_error, TunnelConnectionRefusedError)
        assert counted.last_error.port == port
        assert f"port {port}" in caplog.text
        with pytest.raises(TunnelConnectionRefusedError):
            await tunnel.check()
        with listening(echo, address=("127.0.0.1", port)):
            await tunnel.check()
            assert await exchange(tunnel.local_port, b"now") == b"now"


async def test_a_reset_passes_both_ways(sandbox: AsyncSandbox) -> None:
    outcome: list[object] = []

    def break_off_or_wait(connection: socket.socket) -> None:
        if connection.recv(1) == b"b":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        try:
            outcome.append(connection.recv(1))
        except OSError as error:
            outcome.append(type(error))

    with listening(break_off_or_wait) as service:
        async with sandbox.tunnel(port_of(service), local_port=None) as tunnel:
            async with await anyio.connect_tcp("127.0.0.1", tunnel.local_port) as stream:
                await stream.send(b"break")
                with pytest.raises(anyio.BrokenResourceError):
                    await stream.receive()
            with socket.create_connection(("127.0.0.1", tunnel.local_port)) as plain:  # which sends no end of its own
                plain.sendall(b"w")
                await until(lambda: tunnel.statistics().bytes_sent >= 6)
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await until(lambda: outcome == [ConnectionResetError])


async def test_a_local_program_that_reads_nothing_holds_the_service_back(sandbox: AsyncSandbox) -> None:
    sent: list[int] = []

    def flood(connection: socket.socket) -> None:
        connection.settimeout(0.5)
        total = 0
        try:
            while total < 1 << 28:
                total += connection.send(bytes(1 << 16))
        except TimeoutError:
            pass
        sent.append(total)

    with listening(flood) as service, listening(echo) as other:
        async with (
            sandbox.tunnel(port_of(service), local_port=None) as tunnel,
            sandbox.tunnel(port_of(other), local_port=None) as beside,
        ):
            async with await anyio.connect_tcp("127.0.0.1", tunnel.local_port):
                await until(lambda: bool(sent))
                assert await exchange(beside.local_port, b"free") == b"free"
    assert sent[0] < 1 << 26


async def test_a_lost_connection_is_made_anew_when_it_is_needed(client: AsyncSandboxClient, daemon: Daemon) -> None:
    async with wire_to(daemon.port) as wire:
        sandbox = sandbox_at(client, wire.port)
        with listening(echo) as service:
            async with sandbox.tunnel(port_of(service), local_port=None) as tunnel:
                stream = await anyio.connect_tcp("127.0.0.1", tunnel.local_port)
                await stream.send(b"x")
                assert await stream.receive() == b"x"
                wire.cut()
                with pytest.raises(anyio.BrokenResourceError):
                    await stream.receive()
                await stream.aclose()
                assert isinstance(tunnel.statistics().last_error, SandboxConnectionError)
                assert wire.connections == 1
                assert await exchange(tunnel.local_port, b"again") == b"again"
                assert (wire.connections, tunnel.statistics().reconnects) == (2, 1)


async def test_a_tunnel_that_cannot_connect_anew_breaks_off_what_waits(
    client: AsyncSandboxClient, daemon: Daemon
) -> None:
    async with wire_to(daemon.port) as wire:
        sandbox = sandbox_at(client, wire.port)
        with listening(echo) as service:
            async with sandbox.tunnel(port_of(service), local_port=None, max_reconnects=1) as tunnel:
                wire.refusing = True
                wire.cut()
                await until(lambda: tunnel.statistics().last_error is not None)
                async with await anyio.connect_tcp("127.0.0.1", tunnel.local_port) as stream:
                    with pytest.raises(anyio.BrokenResourceError):
                        await stream.receive()
                with pytest.raises(SandboxConnectionError):
                    await tunnel.check()
                wire.refusing = False
                assert await exchange(tunnel.local_port, b"back") == b"back"


async def test_what_a_slow_program_has_yet_to_take_outlives_the_connection(
    client: AsyncSandboxClient, daemon: Daemon
) -> None:
    size = 3_500_000  # more than the system's buffers take, by less than a window

    def send_or_echo(connection: socket.socket) -> None:
        if connection.recv(1) == b"s":
            connection.sendall(bytes(size))
        else:
            connection.sendall(b"e")
            echo(connection)

    async with wire_to(daemon.port) as wire:
        with listening(send_or_echo) as service, socket.socket() as slow:
            async with sandbox_at(client, wire.port).tunnel(port_of(service), local_port=None) as tunnel:
                slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                slow.connect(("127.0.0.1", tunnel.local_port))
                slow.sendall(b"s")
                slow.shutdown(socket.SHUT_WR)
                await until(lambda: tunnel.statistics().bytes_received == size)
                core = tunnel._driver._tunnel
                assert core is not None
                await until(lambda: not core.stream_ids)
                [connection] = tunnel._driver._local.connections
                assert connection.queue
                wire.cut()
                await until(lambda: tunnel.statistics().last_error is not None)
                async with await anyio.connect_tcp("127.0.0.1", tunnel.local_port) as stream:
                    await stream.send(b"e")
                    assert await stream.receive() == b"e"
                    slow.settimeout(PATIENCE)
                    assert len(await anyio.to_thread.run_sync(read_all, slow)) == size
                    await until(lambda: tunnel.statistics().open_connections == 1)
                    await stream.send(b"still there")
                    assert await stream.receive() == b"still there"


async def test_a_peer_that_falls_silent_is_given_up_and_found_again(
    client: AsyncSandboxClient, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        tunnels, "YamuxLimits", lambda window: YamuxLimits(window=window, ping_interval=0.5, ping_timeout=1.0)
    )
    monkeypatch.setattr(driver, "OPEN_SECONDS", 2.0)  # how often the time is looked at
    async with wire_to(daemon.port) as wire:
        with listening(echo) as service:
            async with sandbox_at(client, wire.port).tunnel(port_of(service), local_port=None) as tunnel:
                assert await exchange(tunnel.local_port, b"one") == b"one"
                wire.silent = True
                await until(lambda: "ping" in str(tunnel.statistics().last_error))
                wire.silent = False
                assert await exchange(tunnel.local_port, b"two") == b"two"
                assert tunnel.statistics().reconnects == 1


async def test_so_many_connections_wait_for_a_lost_tunnel_and_no_more(
    client: AsyncSandboxClient, daemon: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(driver, "MAX_WAITING", 1)
    async with wire_to(daemon.port) as wire:
        with listening(echo) as service:
            async with sandbox_at(client, wire.port).tunnel(
                port_of(service), local_port=None, max_reconnects=99
            ) as tunnel:
                wire.refusing = True
                wire.cut()
                await until(lambda: tunnel.statistics().last_error is not None)
                async with await anyio.connect_tcp("127.0.0.1", tunnel.local_port) as first:
                    with pytest.raises((anyio.BrokenResourceError, OSError)):  # it may be reset while it connects
                        async with await anyio.connect_tcp("127.0.0.1", tunnel.local_port) as second:
                            await second.receive()
                    assert "1 connections wait already" in caplog.text
                    wire.refusing = False
                    await first.send(b"patience")
                    assert await first.receive() == b"patience"


async def test_without_reconnects_a_lost_tunnel_stays_lost(client: AsyncSandboxClient, daemon: Daemon) -> None:
    async with wire_to(daemon.port) as wire:
        sandbox = sandbox_at(client, wire.port)
        async with sandbox.tunnel(80, local_port=None, max_reconnects=0) as tunnel:
            wire.cut()
            await until(lambda: tunnel.statistics().last_error is not None)
            with pytest.raises(SandboxConnectionError):
                await tunnel.check()
            assert wire.connections == 1


async def test_without_descriptors_nothing_is_accepted_and_the_others_go_on(
    sandbox: AsyncSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(echo) as service, socket.socket() as later:
        async with sandbox.tunnel(port_of(service), local_port=None) as tunnel:
            async with await anyio.connect_tcp("127.0.0.1", tunnel.local_port) as stream:
                await stream.send(b"x")
                assert await stream.receive() == b"x"
                monkeypatch.setattr(local_side, "ACCEPT_PAUSE_SECONDS", 2.0)
                with no_descriptors():
                    assert later.connect_ex(("127.0.0.1", tunnel.local_port)) == 0
                    await until(lambda: tunnel._driver._local._accept_at is not None)
                    paused_until = tunnel._driver._local._accept_at
                    for _ in range(5):
                        await stream.send(b"x")
                        assert await stream.receive() == b"x"
                    assert tunnel._driver._local._accept_at == paused_until  # all of it went in one pause
                await until(lambda: tunnel.statistics().total_connections == 2)


# --- opening and closing ---------------------------------------------------------------------------------------------


async def test_a_tunnel_that_is_awaited_belongs_to_the_client(daemon: Daemon) -> None:
    with listening(echo) as service:
        async with AsyncSandboxClient(
            api_endpoint="http://127.0.0.1:9/unused", headers={"x-sandbox-secret": SECRET}
        ) as client:
            tunnel = await sandbox_at(client, daemon.port).tunnel(port_of(service), local_port=None)
            assert await exchange(tunnel.local_port, b"hi") == b"hi"
        with pytest.raises(OSError):
            await anyio.connect_tcp("127.0.0.1", tunnel.local_port)


async def test_closing_frees_the_port_at_once_and_resets_what_is_open(sandbox: AsyncSandbox) -> None:
    with listening(echo) as service:
        tunnel = await sandbox.tunnel(port_of(service), local_port=None)
        async with await anyio.connect_tcp("127.0.0.1", tunnel.local_port) as stream:
            await stream.send(b"x")
            assert await stream.receive() == b"x"
            await tunnel.aclose()
            await tunnel.aclose()
            with pytest.raises(anyio.BrokenResourceError):
                await stream.receive()
        again = await sandbox.tunnel(port_of(service), local_port=tunnel.local_port)
        assert again.local_port == tunnel.local_port
        await again.aclose()


@pytest.mark.parametrize("lost", [False, True])
async def test_closing_answers_who_waits_for_a_check(client: AsyncSandboxClient, daemon: Daemon, lost: bool) -> None:
    outcome: list[Exception] = []

    async def check(tunnel: AsyncTunnel) -> None:
        try:
            await tunnel.check()
        except LocalProtocolError as error:
            outcome.append(error)

    with full_backlog() as port:
        async with wire_to(daemon.port) as wire, sandbox_at(client, wire.port).tunnel(port, local_port=None) as tunnel:
            if lost:
                wire.refusing = True
                wire.cut()
                await until(lambda: tunnel.statistics().last_error is not None)
            with anyio.fail_after(PATIENCE):
                async with anyio.create_task_group() as group:
                    group.start_soon(check, tunnel)
                    await until(lambda: tunnel._driver._link.connecting if lost else bool(tunnel._driver._streams))
                    await tunnel.aclose()
            assert [str(error) for error in outcome] == ["the tunnel is closed"]
            with pytest.raises(LocalProtocolError, match="closed"):
                await tunnel.check()
            assert (tunnel.statistics().last_error is not None) == lost


async def test_without_an_entered_client_only_a_block_can_serve_a_tunnel(daemon: Daemon) -> None:
    client = AsyncSandboxClient(api_endpoint="http://127.0.0.1:9/unused", headers={"x-sandbox-secret": SECRET})
    sandbox = sandbox_at(client, daemon.port)
    with listening(echo) as service:
        with pytest.raises(LocalProtocolError, match="async with"):
            await sandbox.tunnel(port_of(service), local_port=None)
        async with sandbox.tunnel(port_of(service), local_port=None) as tunnel:
            assert await exchange(tunnel.local_port, b"hi") == b"hi"
    await client.aclose()


async def test_local_port_zero_is_the_number_of_the_remote_port(sandbox: AsyncSandbox) -> None:
    port = free_port()
    async with sandbox.tunnel(port) as tunnel:
        assert tunnel.local_port == tunnel.remote_port == port


async def test_a_taken_local_port_is_an_os_error_that_says_what_to_do(sandbox: AsyncSandbox) -> None:
    with listening(echo) as other:
        with pytest.raises(TunnelLocalPortError, match="already in use; choose another local_port") as caught:
            await sandbox.tunnel(5432, local_port=port_of(other))
        assert isinstance(caught.value, OSError)
        assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize(
    "arguments",
    [
        {"remote_port": 0},
        {"remote_port": 65536},
        {},
        {"remote_port": 1, "remote_path": "/x"},
        {"remote_path": "x"},
        {"remote_port": 1, "local_port": -1},
        {"remote_port": 1, "local_port": 65536},
        {"remote_port": 1, "max_reconnects": -1},
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_opened(
    sandbox: AsyncSandbox, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"port|path|max_reconnects"):
        sandbox.tunnel(**arguments)


async def test_a_tunnel_is_opened_once(sandbox: AsyncSandbox) -> None:
    pending: PendingTunnel = sandbox.tunnel(80, local_port=None)
    async with pending:
        pass
    with pytest.raises(LocalProtocolError, match="already"):
        await pending


async def test_a_first_connection_that_fails_is_an_error_of_the_call(client: AsyncSandboxClient) -> None:
    with pytest.raises(SandboxConnectionError):
        await sandbox_at(client, free_port()).tunnel(80, local_port=None)
    with pytest.raises(SandboxConnectionError):
        async with sandbox_at(client, free_port()).tunnel(80, local_port=None):
            pass


async def test_a_refused_upgrade_is_a_typed_error(client: AsyncSandboxClient, daemon: Daemon) -> None:
    sandbox = sandbox_at(client, daemon.port)
    with pytest.raises(SandboxAuthenticationError):
        await sandbox.tunnel(80, local_port=None, headers={"x-sandbox-secret": "wrong"})


async def test_an_error_of_the_block_stays_itself(sandbox: AsyncSandbox) -> None:
    with pytest.raises(ZeroDivisionError):
        async with sandbox.tunnel(80, local_port=None):
            raise ZeroDivisionError


async def test_cancelling_at_any_await_leaves_nothing(sandbox: AsyncSandbox) -> None:
    with listening(echo) as service:

        async def use() -> None:
            async with sandbox.tunnel(port_of(service), local_port=None) as tunnel:
                await tunnel.check()
                assert await exchange(tunnel.local_port, b"x") == b"x"

        number = 0
        while await cancel_at(number, use):
            number += 1
            assert number < 300
        assert number > 5
        assert not sandbox._service._tunnels


async def test_a_server_that_restarts_is_found_again(client: AsyncSandboxClient, tmp_path: Path) -> None:
    with listening(echo) as service:
        with daemon_on_port(tmp_path) as first:
            async with wire_to(first.port) as wire:
                tunnel: AsyncTunnel = await sandbox_at(client, wire.port).tunnel(port_of(service), local_port=None)
                assert await exchange(tunnel.local_port, b"one") == b"one"
                assert first.process is not None
                first.process.terminate()
                await anyio.to_thread.run_sync(first.process.wait)
                await until(lambda: tunnel.statistics().last_error is not None)
                assert "shutting down" in str(tunnel.statistics().last_error)
                await tunnel.aclose()
