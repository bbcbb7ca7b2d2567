"""Byte transports: what a websocket runs over.

A plain connection is a non-blocking socket that waits for its event loop only when it would block: connecting costs
less than half of what a stream of asyncio's does, and bulk output arrives in large pieces. A TLS connection is the
same below TLS in memory. The operating system's errors become `SandboxConnectTimeoutError` while connecting, and the
end of the stream afterwards.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import threading
from typing import Protocol
from urllib.parse import urlsplit

import anyio
import attrs
from anyio.lowlevel import checkpoint

from ..errors import RemoteProtocolError, SandboxConnectTimeoutError

__all__ = ["Address", "SocketTransport", "TLSTransport", "Transport", "open_transport"]

RECEIVE_BYTES = 262_144
"""How much one read takes at the most."""


class _Shared(threading.local):
    """One receive buffer a thread, so that a connection that is silent costs no memory."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(RECEIVE_BYTES))


_shared = _Shared()

_GONE = (OSError, anyio.ClosedResourceError)
"""How a socket says that it is closed, by us or by the peer."""


class Transport(Protocol):
    """A connected byte stream. Closing is immediate and never waits for the peer."""

    async def receive(self) -> bytes | memoryview:
        """Return what has arrived, at most 256 KiB; empty at the end of the stream. Cancelling loses nothing.

        A memoryview is of a buffer that the thread's other transports use as well: it is good until the next `await`.
        """
        ...

    async def send(self, data: bytes) -> bool:
        """Send everything; False if the connection is gone.

        A send that is cancelled may have sent a part: close then.
        """
        ...

    def send_now(self, data: bytes) -> None:
        """Send as much as goes without waiting, and ignore failure: for goodbyes."""
        ...

    def start_send(self, data: bytes) -> bool:
        """Send what goes without waiting; False if some is left, which `finish_send` must send before anything else."""
        ...

    async def finish_send(self) -> bool:
        """Send what `start_send` left; False if the connection is gone. Close if it is cancelled."""
        ...

    def close(self) -> None:
        """Let go of the connection at once. A `receive` that waits elsewhere ends as at the end of the stream."""
        ...


@attrs.frozen(kw_only=True)
class Address:
    """Where to connect."""

    host: str
    port: int
    tls: bool

    @classmethod
    def of(cls, url: str) -> Address:
        """Read an http or https URL.

        Raises:
            ValueError: it is neither, or has no host or an impossible port.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http or https URL")
        tls = parts.scheme == "https"
        return cls(host=parts.hostname, port=parts.port or (443 if tls else 80), tls=tls)

    @property
    def authority(self) -> str:
        """The value of a `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class SocketTransport:
    """A transport on a connected, non-blocking socket."""

    __slots__ = ("_closed", "_full", "_left", "_socket")

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._closed = False
        self._left = b""
        self._full = False
        """Whether the last read filled the buffer, so that there is probably more."""

    async def receive(self) -> bytes | memoryview:
        """See `Transport.receive`."""
        buffer = _shared.buffer
        if self._full:
            await checkpoint()  # before reading: what has been read cannot be lost to a cancellation
        while not self._closed:
            try:
                if not self._full:
                    await anyio.wait_readable(self._socket)
                size = self._socket.recv_into(buffer)
            except BlockingIOError:
                self._full = False
            except _GONE:
                return b""
            else:
                self._full = size == RECEIVE_BYTES
                return buffer[:size]
        return b""

    async def send(self, data: bytes) -> bool:
        """See `Transport.send`."""
        rest = memoryview(data)
        while True:
            try:
                rest = rest[self._socket.send(rest) :]
                if not rest:
                    return True
            except BlockingIOError:
                try:
                    await anyio.wait_writable(self._socket)
                except _GONE:
                    return False
            except OSError:
                return False

    def send_now(self, data: bytes) -> None:
        """See `Transport.send_now`."""
        try:
            self._socket.send(data)
        except OSError:
            self.close()

    def start_send(self, data: bytes) -> bool:
        """See `Transport.start_send`."""
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return True  # it is gone, as the reader is about to notice
        self._left = data[sent:] if sent else data
        return not self._left

    async def finish_send(self) -> bool:
        """See `Transport.finish_send`."""
        left, self._left = self._left, b""
        return not left or await self.send(left)

    def close(self) -> None:
        """See `Transport.close`."""
        if not self._closed:
            self._closed = True
            if self._socket.fileno() >= 0:
                anyio.notify_closing(self._socket)
            self._socket.close()


class TLSTransport:
    """TLS over a `SocketTransport`. Closing sends no `close_notify`: the websocket above has said goodbye already."""

    __slots__ = ("_incoming", "_outgoing", "_tls", "_under")

    def __init__(self, under: SocketTransport, context: ssl.SSLContext, hostname: str) -> None:
        self._under = under
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)

    async def handshake(self) -> None:
        """Agree on keys and check the peer's certificate.

        Raises:
            ssl.SSLError: the certificate is not good, or the peer speaks no TLS.
            ConnectionError: the peer went away.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                if not await self._flush() or not await self._fill():
                    raise ConnectionError("the peer closed the connection during the TLS handshake") from None
            else:
                await self._flush()
                return

    async def receive(self) -> bytes | memoryview:
        """See `Transport.receive`."""
        pieces: list[bytes] = []
        while True:
            try:
                while piece := self._tls.read(RECEIVE_BYTES):
                    pieces.append(piece)
                return b"".join(pieces)
            except ssl.SSLWantReadError:
                if pieces:
                    return b"".join(pieces)
            except ssl.SSLError:
                return b"".join(pieces)
            if not await self._flush() or not await self._fill():
                return b""

    async def send(self, data: bytes) -> bool:
        """See `Transport.send`."""
        try:
            self._tls.write(data)
        except ssl.SSLError:
            return False
        return await self._flush()

    def send_now(self, data: bytes) -> None:
        """See `Transport.send_now`."""
        try:
            self._tls.write(data)
        except ssl.SSLError:
            return
        self._under.send_now(self._outgoing.read())

    def start_send(self, data: bytes) -> bool:
        """See `Transport.start_send`."""
        try:
            self._tls.write(data)
        except ssl.SSLError:
            return True  # it is gone, as the reader is about to notice
        return self._under.start_send(self._outgoing.read())

    async def finish_send(self) -> bool:
        """See `Transport.finish_send`."""
        return await self._under.finish_send()

    def close(self) -> None:
        """See `Transport.close`."""
        self._under.close()

    async def _flush(self) -> bool:
        pending = self._outgoing.read()
        return not pending or await self._under.send(pending)

    async def _fill(self) -> bool:
        data = await self._under.receive()
        self._incoming.write(data)
        return bool(data)


async def open_transport(address: Address, ssl_context: ssl.SSLContext | None) -> Transport:
    """Connect. The caller bounds the time; cancelling leaves no socket.

    Args:
        ssl_context: one per client; needed when `address.tls`.

    Raises:
        SandboxConnectTimeoutError: nothing could be reached there; another try may succeed.
        SandboxConnectionError: the peer's certificate is not good.
    """
    try:
        plain = SocketTransport(await _connect(address))
    except OSError as exc:
        raise SandboxConnectTimeoutError(f"cannot connect to {address.authority}: {exc}") from exc
    if not address.tls:
        return plain
    assert ssl_context is not None
    try:
        secured = TLSTransport(plain, ssl_context, address.host)
        await secured.handshake()
    except BaseException as exc:
        plain.close()
        if isinstance(exc, ssl.SSLCertVerificationError):
            raise RemoteProtocolError(f"the certificate of {address.authority} is not good: {exc}") from exc
        if isinstance(exc, (OSError, ssl.SSLError)):
            raise SandboxConnectTimeoutError(f"no TLS connection to {address.authority}: {exc}") from exc
        raise
    return secured


async def _connect(address: Address) -> socket.socket:
    """Connect to the first address that answers: each next one is tried 250 ms after the one before, or when that
    failed."""
    if _is_ip(address.host):
        return await _connect_one(address.host, address.port)
    found = await anyio.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    hosts = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
    if len(hosts) == 1:
        return await _connect_one(hosts[0], address.port)
    winner: socket.socket | None = None
    errors: list[OSError] = []

    async def attempt(host: str, over: anyio.Event) -> None:
        nonlocal winner
        try:
            sock = await _connect_one(host, address.port)
        except OSError as exc:
            errors.append(exc)
            over.set()
            return
        if winner is None:
            winner = sock
            group.cancel_scope.cancel()
        else:
            sock.close()

    try:
        async with anyio.create_task_group() as group:
            for host in hosts:
                over = anyio.Event()
                group.start_soon(attempt, host, over)
                with anyio.move_on_after(0.25):
                    await over.wait()
    except BaseException:
        if winner is not None:
            winner.close()
        raise
    if winner is None:
        raise errors[0]
    return winner


async def _connect_one(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            sock.connect((host, port))
        except BlockingIOError:
            await _until_connected(sock)
    except BaseException:
        sock.close()
        raise
    return sock


async def _until_connected(sock: socket.socket) -> None:
    """Wait for a connection under way; to the machine itself it is there at once."""
    while True:
        failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            raise OSError(failed, os.strerror(failed))
        try:
            sock.getpeername()
        except OSError:
            await anyio.wait_writable(sock)
        else:
            return


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
