"""A byte stream over an asyncio transport, with both buffers bounded."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from typing import TYPE_CHECKING

from .limits import LINGER_BYTES, LINGER_TIMEOUT, READ_BUFFER, WRITE_BUFFER

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Stream"]


class Stream(asyncio.Protocol):
    """One end of a connection.

    Bytes are read ahead of their consumer, so that a peer that leaves is noticed while nobody reads: `on_gone` is
    then called, once. At `READ_BUFFER` bytes reading pauses.
    """

    transport: asyncio.Transport

    def __init__(self, on_open: Callable[[Stream], None] | None = None) -> None:
        self.on_gone: Callable[[], None] | None = None
        self._on_open = on_open
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._paused = False
        self._ended = False
        self._lost = False
        self._writable = True
        self._receiver: asyncio.Future[None] | None = None
        self._drainers: list[asyncio.Future[None]] = []

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        if self._on_open is not None:
            self._on_open(self)

    def data_received(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)
        if self._size >= READ_BUFFER and not self._paused:
            self._paused = True
            self.transport.pause_reading()
        self._wake_receiver()

    def eof_received(self) -> bool:
        self._end()
        return self.transport.can_write_eof()  # Our own side stays open, where a transport can be half-closed.

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and not self._ended:
            self._rescue()
        self._lost = True
        self._end()
        for drainer in self._drainers:
            if not drainer.done():
                drainer.set_result(None)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        for drainer in self._drainers:
            if not drainer.done():
                drainer.set_result(None)

    # What its owner calls.

    async def receive(self) -> bytes:
        """The next bytes, as they came from the socket; `b""` once the peer has ended its side or is gone.

        For one caller at a time. Cancelling it loses nothing.
        """
        while not self._chunks:
            if self._ended:
                return b""
            self._receiver = asyncio.get_running_loop().create_future()
            try:
                await self._receiver
            finally:
                self._receiver = None
        chunk = self._chunks.popleft()
        self._size -= len(chunk)
        if self._paused and self._size < READ_BUFFER // 2:
            self._paused = False
            if not self._lost:
                self.transport.resume_reading()
        return chunk

    async def send(self, *pieces: bytes) -> None:
        """Write, then wait until the unsent rest is below its bound.

        Raises ConnectionResetError when the connection is lost.
        """
        self.write(*pieces)
        await self.drain()

    def write(self, *pieces: bytes) -> None:
        """Queue bytes; what is written to a lost connection is dropped."""
        if self._lost or self.transport.is_closing():
            return
        for piece in pieces:
            self.transport.write(piece)

    async def drain(self) -> None:
        """Wait until the unsent rest is below its bound. Raises ConnectionResetError when the connection is lost."""
        while not self._writable and not self._lost:
            drainer = asyncio.get_running_loop().create_future()
            self._drainers.append(drainer)
            try:
                await drainer
            finally:
                self._drainers.remove(drainer)
        if self._lost:
            raise ConnectionResetError("the connection is lost")

    async def close_gently(self) -> None:
        """Send what is queued and our end, then discard what still comes, so that no reset overtakes our last words.

        Takes at most `LINGER_TIMEOUT` seconds.
        """
        if self._lost:
            return
        try:
            async with asyncio.timeout(LINGER_TIMEOUT):
                if self.transport.can_write_eof():
                    self.transport.write_eof()
                    discarded = 0
                    while discarded < LINGER_BYTES and (data := await self.receive()):
                        discarded += len(data)
        except OSError:  # it took too long, or the peer reset the connection a moment ago
            self.transport.abort()
        finally:
            self.transport.close()

    def close(self) -> None:
        """Close after sending what is queued."""
        self.transport.close()

    def abort(self) -> None:
        """Close now; the peer sees a reset where the transport has one."""
        self.transport.abort()

    def take_over(self, protocol: asyncio.Protocol) -> bytes:
        """Hand the transport to another protocol, with the bytes that were received and not consumed."""
        leftover = b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        self.transport.set_protocol(protocol)
        if self._paused and not self._lost:
            self.transport.resume_reading()
        return leftover

    @property
    def ended(self) -> bool:
        """Whether the peer has ended its side, or the connection is lost."""
        return self._ended

    @property
    def lost(self) -> bool:
        return self._lost

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._wake_receiver()
        if self.on_gone is not None:
            self.on_gone()

    def _rescue(self) -> None:
        """Read what the peer said before it stopped listening.

        A peer may answer and close while we still send. The event loop then fails the transport at our next write,
        although the answer waits in the socket, which stays open until this callback returns.
        """
        if self.transport.get_extra_info("ssl_object") is not None:
            return
        descriptor = self.transport.get_extra_info("socket").fileno()
        with contextlib.suppress(OSError):
            while self._size < READ_BUFFER and (data := os.read(descriptor, READ_BUFFER)):
                self._chunks.append(data)
                self._size += len(data)

    def _wake_receiver(self) -> None:
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)
