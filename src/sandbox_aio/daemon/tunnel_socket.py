"""One websocket of `/tunnel` in the event loop: each of its streams is joined to a connection in the sandbox.

Credit is granted for what a connection's socket has taken, and a connection is read only while its stream may send, so
that a slow program stops its peer and nobody else. What many connections say in one turn of the loop leaves in one
message. Wire protocol, section 5.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from ..protocol.tunnel import DaemonTunnel, DialRequested, TunnelClosed
from ..protocol.tunnel_preamble import TunnelStatus, TunnelTarget
from ..protocol.yamux_events import StreamData, StreamEnded, StreamReset, StreamWritable, YamuxLimits
from .ports import DialError, dial
from .raw_connection import break_off

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from ..protocol.websocket import WebSocket
    from .settings import DaemonLimits

__all__ = ["TunnelSocket"]

_BUFFER_BYTES: Final = 256 * 1024
"""What the websocket's transport may hold before the connections are no longer read."""
_FRAME_BYTES: Final = 64 * 1024
"""What one connection says in one frame, at the most."""
_TARGET_BUFFER_BYTES: Final = 64 * 1024
"""What a connection's transport may hold before its stream gets no credit."""
_UNREAD_BYTES: Final = 4 << 20
"""What the transport holds of a client that reads nothing and asks for answers, before it is dropped."""
_HALF_CLOSED_SECONDS: Final = 300.0
"""How long a stream whose client has ended its side may be silent before it is broken off."""
_LOOK_SECONDS: Final = 30.0
"""How often such streams are looked at."""


class TunnelSocket(asyncio.Protocol):
    """A websocket that is open, and the connections behind its streams."""

    def __init__(
        self,
        websocket: WebSocket,
        limits: DaemonLimits,
        connections: MutableMapping[asyncio.BaseTransport, asyncio.Protocol],
    ) -> None:
        self.tunnel: DaemonTunnel = DaemonTunnel(
            websocket,
            YamuxLimits(
                max_streams=limits.tunnel_streams,
                max_frame_bytes=_FRAME_BYTES,
                max_window=limits.tunnel_window_bytes,
                max_windows=limits.tunnel_windows_bytes,
            ),
        )
        self.writable: bool = True
        """Whether the client keeps up with what it is sent."""
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._bridges: dict[int, _Bridge] = {}
        self._dials: dict[int, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._flushing = False
        self._acting = False
        self._queued = 0
        """Bytes of streams that were queued since the last flush."""

    # --- called by the transport --------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin. What came behind the request is acted on at once."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_BUFFER_BYTES, low=_BUFFER_BYTES // 4)
        self.tunnel.receive_bytes(b"", self._loop.time())
        self._act()

    def data_received(self, data: bytes) -> None:
        """Act on what the client sent."""
        self.tunnel.receive_bytes(data, self._loop.time())
        self._act()

    def eof_received(self) -> bool:
        """The client sends no more: it has gone."""
        self.tunnel.receive_eof(self._loop.time())
        self._act()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Break off every connection behind the tunnel."""
        if self._transport is not None:
            self._connections.pop(self._transport, None)
        self._transport = None
        self.tunnel.receive_eof(self._loop.time())
        if self._timer is not None:
            self._timer.cancel()
        self._act()

    def pause_writing(self) -> None:
        """The client is slower than the connections."""
        self.writable = False

    def resume_writing(self) -> None:
        """The client has caught up: read on, as far as it goes; whoever had a turn is the last of the next one."""
        self.writable = True
        for stream_id, bridge in list(self._bridges.items()):
            if not self.writable:
                break
            bridge.push()
            self._bridges[stream_id] = self._bridges.pop(stream_id)

    # --- called by others --------------------

    def shut_down(self) -> None:
        """Tell the client that the daemon is going away: 1001."""
        self.tunnel.close(self._loop.time(), 1001, "the sandbox is shutting down")
        self._act()

    def queued(self, size: int) -> None:
        """A connection has queued bytes. Many can do so in one turn of the loop, so what is much is sent at once."""
        self._queued += size
        if self._queued >= _BUFFER_BYTES:
            self._flush()
        else:
            self.flush_soon()

    def flush_soon(self) -> None:
        """Send what there is to send at the end of this turn of the loop; at once, where nobody else can add to it."""
        if len(self._bridges) == 1 and not self._acting:
            self._flush()
        elif not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def forget(self, stream_id: int) -> None:
        """A stream's connection is over."""
        self._bridges.pop(stream_id, None)

    # --- inside --------------------

    def _flush(self) -> None:
        self._flushing = False
        self._queued = 0
        if self._transport is None:
            return
        if pieces := self.tunnel.bytes_to_send():
            self._transport.writelines(pieces)
        if self.tunnel.finished:
            self._transport.close()
        elif self._transport.get_write_buffer_size() > _UNREAD_BYTES:
            self._transport.abort()
        self._arm()

    def _act(self) -> None:
        self._acting = True
        for event in self.tunnel.events():
            if isinstance(event, StreamData):
                if (bridge := self._bridges.get(event.stream_id)) is not None:
                    bridge.receive_data(event.data)
                else:
                    self.tunnel.consume(event.stream_id, len(event.data))  # of a stream that was refused
            elif isinstance(event, DialRequested):
                self._begin(event.stream_id, event.target)
            elif isinstance(event, StreamWritable):
                if (bridge := self._bridges.get(event.stream_id)) is not None:
                    bridge.push()
            elif isinstance(event, StreamEnded):
                if (bridge := self._bridges.get(event.stream_id)) is not None:
                    bridge.receive_end()
            elif isinstance(event, StreamReset):
                if (bridge := self._bridges.pop(event.stream_id, None)) is not None:
                    bridge.break_off()
                if (dialling := self._dials.get(event.stream_id)) is not None:
                    dialling.cancel()
            else:
                assert isinstance(event, TunnelClosed)
        self._acting = False
        self.flush_soon()

    def _begin(self, stream_id: int, target: TunnelTarget) -> None:
        self._bridges[stream_id] = bridge = _Bridge(self, stream_id)
        task = self._loop.create_task(self._dial(bridge, target), name="dial")
        self._dials[stream_id] = task
        task.add_done_callback(lambda _: self._dials.pop(stream_id, None))

    async def _dial(self, bridge: _Bridge, target: TunnelTarget) -> None:
        try:
            connection = await dial(target)
        except DialError:
            self.forget(bridge.stream_id)
            self.tunnel.answer(bridge.stream_id, TunnelStatus.REFUSED)
        else:
            try:
                await self._loop.create_connection(lambda: bridge, sock=connection)
            except BaseException:
                connection.close()
                raise
        self.flush_soon()

    def _arm(self) -> None:
        deadline = self.tunnel.deadline()
        if deadline is not None and (self._timer is None or deadline < self._timer.when()):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._due)

    def _due(self) -> None:
        self._timer = None
        self.tunnel.receive_timeout(self._loop.time())
        self._act()


class _Bridge(asyncio.Protocol):
    """A stream and the connection that it leads to."""

    def __init__(self, owner: TunnelSocket, stream_id: int) -> None:
        self.stream_id = stream_id
        self._owner = owner
        self._tunnel = owner.tunnel
        self._transport: asyncio.Transport | None = None
        self._early: list[memoryview] = []
        """What the client sent before there was a connection; its window bounds it."""
        self._rest: memoryview | None = None
        """What was read and could not be sent yet."""
        self._owed = 0
        """Bytes that the transport took and its socket has not."""
        self._slow = False
        self._client_ended = False
        self._target_ended = False
        self._end_sent = False
        self._timer: asyncio.TimerHandle | None = None
        """When it is looked at next, whether it moves."""
        self._moved_at = 0.0
        self._unwritten = 0
        """What the target had yet to take when it was last looked at."""

    # --- called by the connection's transport --------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The target has accepted."""
        assert isinstance(transport, asyncio.Transport)
        if not self._tunnel.has_stream(self.stream_id):
            break_off(transport)
            return
        self._transport = transport
        transport.set_write_buffer_limits(high=_TARGET_BUFFER_BYTES)
        self._tunnel.answer(self.stream_id, TunnelStatus.CONNECTED)
        early, self._early = self._early, []
        for data in early:
            self.receive_data(data)
        if self._client_ended:
            self._end_target()

    def data_received(self, data: bytes) -> None:
        """Send it on as far as the stream takes it; then read no more for now."""
        self._rest = memoryview(data)
        self.push()

    def eof_received(self) -> bool:
        """The target sends no more; the client may."""
        self._target_ended = True
        self.push()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over: so is the stream."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        self._owner.forget(self.stream_id)
        if self._tunnel.has_stream(self.stream_id) and not (self._end_sent and self._client_ended):
            self._tunnel.reset_stream(self.stream_id)
        self._owner.flush_soon()

    def pause_writing(self) -> None:
        """The target is slow: grant no credit."""
        self._slow = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self._slow = False
        owed, self._owed = self._owed, 0
        self._tunnel.consume(self.stream_id, owed)
        self._owner.flush_soon()

    # --- called by the tunnel --------------------

    def receive_data(self, data: memoryview) -> None:
        """Bytes for the target."""
        if self._transport is None:
            self._early.append(data)
            return
        self._transport.write(data)
        if self._slow:
            self._owed += len(data)
        else:
            self._tunnel.consume(self.stream_id, len(data))

    def receive_end(self) -> None:
        """The client sends no more."""
        self._client_ended = True
        if self._transport is not None:
            self._end_target()

    def break_off(self) -> None:
        """The stream was reset, or the tunnel is gone."""
        if self._transport is not None:
            break_off(self._transport)

    def push(self) -> None:
        """Send what was read, and read on once it is gone."""
        transport = self._transport
        if transport is None:
            return
        rest = self._rest
        if rest is not None:
            size = min(self._tunnel.send_window(self.stream_id), len(rest)) if self._owner.writable else 0
            if size:
                self._tunnel.send_data(self.stream_id, rest[:size])
                self._moved_at = asyncio.get_running_loop().time()
                self._owner.queued(size)
            if size < len(rest):
                self._rest = rest[size:]
                transport.pause_reading()
                return
            self._rest = None
            transport.resume_reading()
        if self._target_ended and not self._end_sent:
            self._end_sent = True
            self._tunnel.end_stream(self.stream_id)
            self._owner.flush_soon()
            if self._client_ended:
                transport.close()

    def _end_target(self) -> None:
        assert self._transport is not None
        if self._end_sent:
            self._transport.close()
            if self._transport.get_write_buffer_size():  # the stream is over and counts no more, but this is still open
                self._watch()
            return
        with contextlib.suppress(OSError):  # it reset its connection a moment ago
            self._transport.write_eof()
        self._watch()

    def _watch(self) -> None:
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        self._moved_at = loop.time()
        self._unwritten = self._transport.get_write_buffer_size()
        self._timer = loop.call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """Break off a stream whose client has ended its side and which has not moved for too long."""
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        if (unwritten := self._transport.get_write_buffer_size()) != self._unwritten:
            self._unwritten = unwritten
            self._moved_at = loop.time()
        if loop.time() - self._moved_at >= _HALF_CLOSED_SECONDS:
            break_off(self._transport)
        else:
            self._timer = loop.call_later(_LOOK_SECONDS, self._look)
