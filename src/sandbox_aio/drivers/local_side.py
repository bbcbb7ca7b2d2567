"""The local side of a tunnel: a port of this machine, and the connections to it.

One task serves them all. It waits for the selector itself, which is ready whenever one of its sockets is, and does what
all of them want in one turn: so many connections cost few turns of the event loop, and what they send leaves together.
Bytes wait for a program only within the window of its stream, and for the tunnel not at all: a connection whose stream
may not send is not read.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

import anyio

from .local_socket import READ_BYTES, break_off, end, try_read, try_write

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..errors import SandboxClientError

__all__ = ["LocalConnection", "LocalSide", "Streams"]

ACCEPTS_A_TURN: Final = 64
"""Connections that are accepted before the others are served again."""
READS_A_TURN: Final = 4
"""Full reads of one connection before the others are served again."""
TURNS_A_WAIT: Final = 4
"""Turns that follow each other while there is something to do, before other tasks have theirs."""
ACCEPT_PAUSE_SECONDS: Final = 0.1
"""How long nothing is accepted when there are no descriptors left for it."""
POLL_SECONDS: Final = 0.005
"""How often the sockets are looked at where the selector cannot be waited for, as on Windows."""

_log = logging.getLogger("sandbox_aio.tunnel")
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Streams(Protocol):
    """What the local side asks of the tunnel. All of it returns at once, except `room`."""

    def opened(self, local: LocalConnection) -> None:
        """A local connection wants a stream: `attach` follows, or `break_off`."""

    def window(self, stream_id: int) -> int:
        """How much a stream may send."""

    def send(self, stream_id: int, data: memoryview) -> None:
        """Send on a stream, at most its window."""

    def end(self, stream_id: int) -> None:
        """Say that a stream sends no more."""

    def consumed(self, stream_id: int, size: int) -> None:
        """A program has taken what came on a stream."""

    def dropped(self, local: LocalConnection) -> None:
        """A local connection is over. If its stream is not, it is to be reset."""

    def flush(self) -> None:
        """Send what was queued."""

    @property
    def blocked(self) -> bool:
        """Whether the tunnel's connection takes nothing for now."""

    async def room(self) -> None:
        """Wait while it does not."""


class LocalConnection:
    """A connection to the local port, and the id of its stream, which is 0 before it has one."""

    __slots__ = ("eof", "error", "interest", "queue", "remote_ended", "socket", "stream_id")

    def __init__(self, sock: socket.socket) -> None:
        self.socket: socket.socket = sock
        self.stream_id: int = 0
        self.interest: int = 0
        self.eof: bool = False
        """Whether the program sends no more."""
        self.remote_ended: bool = False
        """Whether the stream brings no more."""
        self.queue: deque[bytes] = deque()
        """What the program has not taken yet."""
        self.error: SandboxClientError | None = None


class LocalSide:
    """Owns the listener and every local connection until `close`."""

    def __init__(self, listener: socket.socket, streams: Streams) -> None:
        self.connections: set[LocalConnection] = set()
        self.total: int = 0
        """Connections that were accepted."""
        self.bytes_sent: int = 0
        self.bytes_received: int = 0
        self._listener = listener
        self._streams = streams
        self._selector = selectors.DefaultSelector()
        fileno: Callable[[], int] | None = getattr(self._selector, "fileno", None)
        self._descriptor = None if fileno is None else fileno()
        self._closed = False
        self._accept_at: float | None = None
        """When to accept again, while there are no descriptors left for it."""

    async def serve(self) -> None:
        """Accept and move bytes until cancelled, or `close`."""
        self._selector.register(self._listener, _READ)
        turns = TURNS_A_WAIT
        while True:
            if self._streams.blocked:
                await self._streams.room()
            if self._closed:
                return
            # What a turn sends wakes others, who often run at once. Then they have answered, and waiting costs more.
            ready = self._selector.select(0) if turns < TURNS_A_WAIT else []
            turns += 1
            if not ready:
                turns = 1
                await self._wait()
                if self._closed:
                    return
                ready = self._selector.select(0)
            for key, mask in ready:
                if key.data is None:
                    self._accept()
                elif key.data in self.connections:  # an earlier one of this turn may have ended it
                    self._serve(key.data, mask)
            self._streams.flush()

    def close(self) -> None:
        """Listen no more, and break every connection off."""
        if self._closed:
            return
        self._closed = True
        for local in list(self.connections):
            self.break_off(local)
        if self._descriptor is not None:
            anyio.notify_closing(self._descriptor)
        self._selector.close()
        self._listener.close()

    # --- called by the tunnel ----------------------------------------------------------------------------------------

    def attach(self, local: LocalConnection, stream_id: int) -> None:
        """Give a connection its stream."""
        local.stream_id = stream_id
        self.update(local)

    def deliver(self, local: LocalConnection, data: memoryview) -> None:
        """Hand the program what came on its stream."""
        self.bytes_received += len(data)
        sent = 0 if local.queue else try_write(local.socket, data)
        if sent < 0:
            self.break_off(local)
            return
        if sent:
            self._streams.consumed(local.stream_id, sent)
        if sent < len(data):
            local.queue.append(bytes(data[sent:]))
            self.update(local)

    def end(self, local: LocalConnection) -> None:
        """The stream brings no more: tell the program, once it has taken everything before."""
        local.remote_ended = True
        if not local.queue:
            self._pass_end(local)

    def update(self, local: LocalConnection) -> None:
        """Look at what a connection waits for."""
        wanted = _WRITE if local.queue else 0
        if not local.eof and self._streams.window(local.stream_id):
            wanted |= _READ
        if wanted == local.interest or self._closed:
            return
        if not wanted:
            self._selector.unregister(local.socket)
        elif local.interest:
            self._selector.modify(local.socket, wanted, local)
        else:
            self._selector.register(local.socket, wanted, local)
        local.interest = wanted

    def break_off(self, local: LocalConnection, error: SandboxClientError | None = None) -> None:
        """End a connection such that its program sees a reset."""
        if local in self.connections:
            if error is not None:
                _log.warning("a connection to a tunnel's local port was broken off: %s", error)
            local.error = error
            self._forget(local)
            break_off(local.socket)

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _wait(self) -> None:
        """Wait until a socket is ready, or it is time to accept again, or `close` was called."""
        try:
            if self._accept_at is None:
                await self._any_ready()
                return
            with anyio.move_on_after(self._accept_at - anyio.current_time()):
                await self._any_ready()
        except anyio.ClosedResourceError:
            return
        if not self._closed and anyio.current_time() >= self._accept_at:
            self._accept_at = None
            self._selector.register(self._listener, _READ)

    async def _any_ready(self) -> None:
        if self._descriptor is None:
            await anyio.sleep(POLL_SECONDS)
        else:
            await anyio.wait_readable(self._descriptor)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                sock, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                _log.warning("a connection to a tunnel's local port could not be accepted: %s", error)
                self._selector.unregister(self._listener)
                self._accept_at = anyio.current_time() + ACCEPT_PAUSE_SECONDS
                return
            sock.setblocking(False)
            with contextlib.suppress(OSError):  # it has gone already
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            local = LocalConnection(sock)
            self.connections.add(local)
            self.total += 1
            self._streams.opened(local)

    def _serve(self, local: LocalConnection, mask: int) -> None:
        if mask & _WRITE and local.queue:
            self._drain(local)
        if mask & _READ and local in self.connections:
            self._read(local)

    def _read(self, local: LocalConnection) -> None:
        """Take what a program has sent: in pieces that memory is cheap for, several where they follow one another."""
        for _ in range(READS_A_TURN):
            window = self._streams.window(local.stream_id)
            if not window or local.eof:
                self.update(local)
                return
            data, was_reset = try_read(local.socket, window)
            if not data:
                self._end_reading(local, over=data is not None, was_reset=was_reset)
                return
            size = len(data)
            self.bytes_sent += size
            self._streams.send(local.stream_id, data)
            if size == window:
                self.update(local)
                return
            if size < READ_BYTES:
                return
            self._streams.flush()
            if self._streams.blocked or local not in self.connections:
                return

    def _end_reading(self, local: LocalConnection, *, over: bool, was_reset: bool) -> None:
        if was_reset:
            self.break_off(local)
        elif over:
            local.eof = True
            self._streams.end(local.stream_id)
            self.update(local)
            self._close_if_over(local)

    def _drain(self, local: LocalConnection) -> None:
        data = local.queue[0]
        sent = try_write(local.socket, data)
        if sent < 0:
            self.break_off(local)
            return
        if sent < len(data):
            local.queue[0] = data[sent:]
        else:
            local.queue.popleft()
        self._streams.consumed(local.stream_id, sent)
        if not local.queue:
            self.update(local)
            if local.remote_ended:
                self._pass_end(local)

    def _pass_end(self, local: LocalConnection) -> None:
        end(local.socket)
        self._close_if_over(local)

    def _close_if_over(self, local: LocalConnection) -> None:
        if local.eof and local.remote_ended and not local.queue:
            self._forget(local)
            local.socket.close()

    def _forget(self, local: LocalConnection) -> None:
        self.connections.discard(local)
        if local.interest:
            self._selector.unregister(local.socket)
            local.interest = 0
        self._streams.dropped(local)
