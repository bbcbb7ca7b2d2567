"""One websocket of `/execute/ws` in the event loop: bytes between a transport and a `SessionConnection`."""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING

from ..protocol.states import WebSocketState
from ..protocol.websocket import Closed, WebSocket

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from .commands import CommandHub, RunningCommand

__all__ = ["CommandSocket"]

_BATCH_BYTES = 256 * 1024
"""Output that is made into frames at once, and what the transport may hold before nothing more is given to it."""
_UNREAD_BYTES = 4 << 20
"""What the transport holds of a client that asks for pongs and does not read them, before it is dropped."""
_LOOK_SECONDS = 1.0
"""How often a connection that is not being read is looked at for its end."""
_POLLRDHUP = 0x2000


class CommandSocket(asyncio.Protocol):
    """A websocket that is open. It is read by the transport, and written by `flush` alone."""

    def __init__(
        self,
        hub: CommandHub,
        websocket: WebSocket,
        connections: MutableMapping[asyncio.BaseTransport, asyncio.Protocol],
    ) -> None:
        self._hub = hub
        self._connections = connections
        self._websocket = websocket
        self._connection = hub.connect()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._command: RunningCommand | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writable = True
        self._reading = True
        self._leaving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin. What came behind the request is acted on at once."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_BATCH_BYTES, low=_BATCH_BYTES // 4)
        self._act()

    def data_received(self, data: bytes) -> None:
        """Act on what the client sent, a kill before its going away."""
        self._websocket.receive_bytes(data, self._loop.time())
        self._act()

    def eof_received(self) -> bool:
        """The client sends no more: it has gone."""
        self._websocket.receive_eof(self._loop.time())
        self._act()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Detach."""
        if self._transport is not None:
            self._connections.pop(self._transport, None)
        self._transport = None
        self._websocket.receive_eof(self._loop.time())
        if self._timer is not None:
            self._timer.cancel()
        self._act()

    def pause_writing(self) -> None:
        """The client is slower than the command."""
        self._writable = False

    def resume_writing(self) -> None:
        """The client has caught up: go on, and let the process go on."""
        self._writable = True
        self._update()

    def flush(self) -> None:
        """Send what can be sent now; after the last message, close."""
        while self._transport is not None and self._writable and self._websocket.state is WebSocketState.OPEN:
            messages = self._connection.messages_to_send(_BATCH_BYTES, self._loop.time())
            for message in messages:
                self._websocket.send_text(message)
            if self._connection.is_finished:
                self._websocket.close(self._loop.time())
            if not messages:
                break
            self._transport.writelines(self._websocket.bytes_to_send())
        self._write_rest()

    def shut_down(self) -> None:
        """Tell the client that the daemon is going away: 1001."""
        if self._websocket.state is WebSocketState.OPEN:
            self._websocket.close(self._loop.time(), 1001, "the sandbox is shutting down")
        self._write_rest()

    def _write_rest(self) -> None:
        """Send control frames; let go of the transport once nothing more can come."""
        if self._transport is None:
            return
        if rest := self._websocket.bytes_to_send():
            self._transport.writelines(rest)
        if self._transport.get_write_buffer_size() > _UNREAD_BYTES:
            self._transport.abort()
        elif self._websocket.finished:
            self._transport.close()
        self._read_or_not()
        self._arm()

    def _act(self) -> None:
        now = self._loop.time()
        for event in self._websocket.events():
            if isinstance(event, bytes):
                self._connection.receive_message(event, now)
            elif isinstance(event, Closed):
                self._connection.receive_closed(now)
        self._update()

    def _update(self) -> None:
        session = self._connection.session
        if session is not None and self._command is None:
            self._command = self._hub.listen(session, self)
        if self._command is None:
            self.flush()
            return
        self._command.update()
        if self._transport is None:
            self._command.listeners.discard(self)

    def _read_or_not(self) -> None:
        if self._transport is None or self._leaving or self._reading == self._connection.wants_input:
            return
        self._reading = not self._reading
        if self._reading:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()
            self._loop.call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """While nothing is read, notice that the client has gone; then read what it left, which may be a kill."""
        if self._transport is None or self._reading:
            return
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), _POLLRDHUP)
        if poll.poll(0):
            self._reading = self._leaving = True
            self._transport.resume_reading()
        else:
            self._loop.call_later(_LOOK_SECONDS, self._look)

    def _arm(self) -> None:
        deadlines = [d for d in (self._websocket.deadline(), self._connection.deadline()) if d is not None]
        if deadlines and (self._timer is None or min(deadlines) < self._timer.when()):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(min(deadlines), self._due)

    def _due(self) -> None:
        self._timer = None
        if self._transport is not None and self._transport.get_write_buffer_size():
            self._timer = self._loop.call_later(_LOOK_SECONDS, self._due)  # a slow client still takes what it is owed
            return
        now = self._loop.time()
        self._websocket.receive_timeout(now)
        self._connection.receive_timeout(now)
        self._act()
