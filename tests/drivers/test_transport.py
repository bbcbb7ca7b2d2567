"""One contract, held by every transport: over TCP and over TLS, on both event loops."""

from __future__ import annotations

import os
import socket
import ssl
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
import trustme
from anyio.streams.tls import TLSListener

from sandbox_aio.drivers.transport import Address, Transport, open_transport
from sandbox_aio.errors import RemoteProtocolError, SandboxConnectTimeoutError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    Handler = Callable[[anyio.abc.ByteStream], Awaitable[None]]

pytestmark = pytest.mark.anyio

LARGE = os.urandom(4 * 2**20)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority of our own."""
    return trustme.CA()


@pytest.fixture(params=["tcp", "tls"])
def tls(request: pytest.FixtureRequest) -> bool:
    """Whether the transport is over TLS."""
    return bool(request.param == "tls")


class Peer:
    """A listener on the loopback interface, and how to connect to it."""

    def __init__(self, authority: trustme.CA, *, tls: bool) -> None:
        self._tls = tls
        self.context = ssl.create_default_context()
        authority.configure_trust(self.context)
        self._serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost", "127.0.0.1").configure_cert(self._serving)
        self.port = 0

    @asynccontextmanager
    async def serving(self, handler: Handler) -> AsyncGenerator[None]:
        """Handle connections while the block runs."""

        async def handle(stream: anyio.abc.ByteStream) -> None:
            try:
                async with stream:
                    await handler(stream)
            except (anyio.BrokenResourceError, anyio.EndOfStream, ssl.SSLError):
                return

        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self.port = listener.extra(anyio.abc.SocketAttribute.local_port)
        serving = TLSListener(listener, self._serving, standard_compatible=False) if self._tls else listener
        async with serving, anyio.create_task_group() as group:
            group.start_soon(serving.serve, handle)
            yield
            group.cancel_scope.cancel()

    async def connect(self, host: str = "127.0.0.1") -> Transport:
        """Open a transport."""
        return await open_transport(Address(host=host, port=self.port, tls=self._tls), self.context)


@pytest.fixture
def peer(authority: trustme.CA, tls: bool) -> Peer:
    """A peer of either kind."""
    return Peer(authority, tls=tls)


async def echo(stream: anyio.abc.ByteStream) -> None:
    async for data in stream:
        await stream.send(data)


async def receive_exactly(transport: Transport, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        data = await transport.receive()
        assert data, f"the stream ended after {len(received)} bytes"
        received += data
    return bytes(received)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_bytes_go_both_ways(peer: Peer, host: str) -> None:
    async with peer.serving(echo):
        transport = await peer.connect(host)
        assert await transport.send(b"hello")
        assert await receive_exactly(transport, 5) == b"hello"
        transport.close()


async def test_much_goes_both_ways_at_once(peer: Peer) -> None:
    async with peer.serving(echo):
        transport = await peer.connect()
        async with anyio.create_task_group() as group:
            group.start_soon(transport.send, LARGE)
            assert await receive_exactly(transport, len(LARGE)) == LARGE
        transport.close()


async def test_the_peers_end_is_an_empty_read_and_stays_so(peer: Peer) -> None:
    async def once(stream: anyio.abc.ByteStream) -> None:
        await stream.send(b"bye")

    async with peer.serving(once):
        transport = await peer.connect()
        assert await receive_exactly(transport, 3) == b"bye"
        assert [bytes(await transport.receive()) for _ in range(2)] == [b"", b""]
        transport.close()


async def test_a_peer_that_is_gone_takes_nothing(peer: Peer) -> None:
    async def reset(stream: anyio.abc.ByteStream) -> None:
        raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with peer.serving(reset):
        transport = await peer.connect()
        assert not await transport.receive()
        while await transport.send(b"x" * 2**16):
            await anyio.lowlevel.checkpoint()
        transport.send_now(b"goodbye")
        transport.close()


async def test_closing_ends_a_read_elsewhere(peer: Peer) -> None:
    async with peer.serving(echo):
        transport = await peer.connect()
        ends: list[bytes] = []

        async def read() -> None:
            ends.append(bytes(await transport.receive()))

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            transport.close()
            transport.close()
        assert ends == [b""]
        assert not await transport.send(b"x")


async def test_cancelling_a_read_loses_nothing(peer: Peer) -> None:
    async def in_drops(stream: anyio.abc.ByteStream) -> None:
        for n in range(200):
            await stream.send(bytes([n]))
            await anyio.lowlevel.checkpoint()

    async with peer.serving(in_drops):
        transport = await peer.connect()
        received = bytearray()
        while len(received) < 200:
            with anyio.move_on_after(0.0005):
                received += await transport.receive()
        assert received == bytes(range(200))
        transport.close()


async def test_a_send_waits_for_a_peer_that_does_not_read_and_can_be_cancelled(peer: Peer) -> None:
    async def deaf(stream: anyio.abc.ByteStream) -> None:
        await stream.receive(1)
        await anyio.sleep_forever()

    async with peer.serving(deaf):
        transport = await peer.connect()
        with anyio.move_on_after(0.1) as scope:
            while await transport.send(LARGE):  # whatever the kernel and the peer's event loop buffer, it has an end
                pass
        transport.close()
        assert scope.cancelled_caught


async def test_a_goodbye_that_does_not_fit_is_dropped(peer: Peer) -> None:
    async def deaf(stream: anyio.abc.ByteStream) -> None:
        await stream.receive(1)
        await anyio.sleep_forever()

    async with peer.serving(deaf):
        transport = await peer.connect()
        for _ in range(64):
            transport.send_now(LARGE)
        transport.close()


async def test_nothing_there_is_an_error_that_names_the_address(peer: Peer) -> None:
    async with peer.serving(echo):
        pass
    with pytest.raises(SandboxConnectTimeoutError, match=rf"127\.0\.0\.1:{peer.port}: .*refused"):
        await peer.connect()


async def test_an_unknown_name_is_an_error(peer: Peer) -> None:
    with pytest.raises(SandboxConnectTimeoutError, match="no-such-host"):
        await open_transport(Address(host="no-such-host.invalid", port=1, tls=False), None)


async def test_connecting_can_be_cancelled(tls: bool) -> None:
    """The peer's backlog is full (or it says nothing of TLS), so that connecting hangs."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(0)
        address = Address(host="127.0.0.1", port=mute.getsockname()[1], tls=tls)
        opened: list[Transport] = []
        with anyio.move_on_after(0.2) as scope:
            while len(opened) < 16:
                opened.append(await open_transport(address, ssl.create_default_context()))
        for transport in opened:
            transport.close()
        assert scope.cancelled_caught


async def test_a_stranger_s_certificate_is_an_error_for_good(authority: trustme.CA) -> None:
    peer = Peer(trustme.CA(), tls=True)
    peer.context = ssl.create_default_context()
    authority.configure_trust(peer.context)
    async with peer.serving(echo):
        with pytest.raises(RemoteProtocolError, match="certificate"):
            await peer.connect()


async def test_a_peer_without_tls_is_an_error(authority: trustme.CA) -> None:
    async def plain(stream: anyio.abc.ByteStream) -> None:
        await stream.send(b"220 hello\r\n")

    peer = Peer(authority, tls=False)
    async with peer.serving(plain):
        with pytest.raises(SandboxConnectTimeoutError, match="no TLS"):
            await open_transport(Address(host="127.0.0.1", port=peer.port, tls=True), peer.context)


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("http://h", "h"),
        ("http://h:8080/x", "h:8080"),
        ("https://h:443", "h"),
        ("https://h:80", "h:80"),
        ("http://[::1]:81", "[::1]:81"),
    ],
)
def test_the_host_header_leaves_out_the_usual_port(url: str, authority: str) -> None:
    assert Address.of(url).authority == authority


@pytest.mark.parametrize("url", ["ftp://h", "h:80", "http://", "http://h:99999"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|[Pp]ort"):
        Address.of(url)
