"""One connection of a tunnel, either end: a websocket that carries yamux, whose streams begin with a preamble.

Both ends move bytes and time as every object of the core does, and say in `events` what the driver has to do. The
streams are the yamux session's: `send_data`, `send_window`, `consume`, `end_stream` and `reset_stream` are its own.
Wire protocol, section 5.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs

from .states import WebSocketState
from .tunnel_preamble import PreambleParser, TunnelStatus, TunnelTarget
from .websocket import Closed, Opened, Refused, WebSocket
from .yamux import Yamux
from .yamux_events import (
    PeerLeaving,
    SessionEnded,
    StreamData,
    StreamEnded,
    StreamOpened,
    StreamReset,
    StreamWritable,
    YamuxEvent,
    YamuxLimits,
)
from .yamux_states import YamuxSessionState

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ClientTunnel",
    "DaemonTunnel",
    "DialRequested",
    "StreamConnected",
    "StreamRefused",
    "TunnelClosed",
    "TunnelEvent",
    "TunnelOpened",
]

MAX_BATCH_BYTES: Final = 256 * 1024
"""Bytes of frames that the daemon puts into one message; far below what any client takes."""


@attrs.frozen
class TunnelOpened:
    """The websocket is open: streams may be opened."""


@attrs.frozen
class DialRequested:
    """The client opened a stream; connect to its target, then `answer`."""

    stream_id: int
    target: TunnelTarget


@attrs.frozen
class StreamConnected:
    """What the stream leads to has accepted."""

    stream_id: int


@attrs.frozen
class StreamRefused:
    """The stream leads nowhere, and is over. `status` is the daemon's byte; None if it ended without one."""

    stream_id: int
    status: int | None


@attrs.frozen(kw_only=True)
class TunnelClosed:
    """The connection is over, and so is every stream; nothing follows."""

    reason: str
    refused: Refused | None = None
    """What the server answered instead of upgrading."""


TunnelEvent: TypeAlias = (
    TunnelOpened
    | DialRequested
    | StreamConnected
    | StreamRefused
    | StreamData
    | StreamWritable
    | StreamEnded
    | StreamReset
    | TunnelClosed
)


class _Tunnel(abc.ABC):
    """What both ends do alike."""

    def __init__(self, websocket: WebSocket, session: Yamux) -> None:
        self._websocket = websocket
        self._session = session
        self._events: list[TunnelEvent] = []
        self._over = False
        self.send_data: Callable[[int, bytes | memoryview], None] = session.send_data
        self.send_window: Callable[[int], int] = session.send_window
        self.end_stream: Callable[[int], None] = session.end_stream
        self.has_stream: Callable[[int], bool] = session.has_stream

    @property
    def open(self) -> bool:
        """Whether streams can be opened."""
        return self._websocket.state is WebSocketState.OPEN and not self._session.finished

    @property
    def finished(self) -> bool:
        """Whether the transport is of no more use, once `bytes_to_send` is drained."""
        return self._websocket.finished

    @property
    def stream_ids(self) -> list[int]:
        """The streams that are open in at least one direction."""
        return self._session.stream_ids

    def consume(self, stream_id: int, size: int) -> None:
        """Say that bytes of a stream were taken by whom they are for; see `Yamux.consume`."""
        self._session.consume(stream_id, size)

    def reset_stream(self, stream_id: int) -> None:
        """Break a stream off in both directions; see `Yamux.reset_stream`."""
        self._session.reset_stream(stream_id)
        self._forget(stream_id)

    def close(self, now: float, code: int = 1000, reason: str = "") -> None:
        """Say goodbye: go-away, then a close frame. Every stream is over. Nothing happens if it is closed already."""
        if self._websocket.state is not WebSocketState.OPEN:
            return
        self._session.go_away()
        self._session.receive_eof(reason or "the tunnel was closed")
        self._pack()
        self._read_session()
        self._websocket.close(now, code, reason)

    def receive_bytes(self, data: bytes | memoryview, now: float) -> None:
        """Take bytes from the transport, cut anywhere."""
        self._websocket.receive_bytes(data, now)
        self._read(now)

    def receive_eof(self, now: float) -> None:
        """The transport ended."""
        self._websocket.receive_eof(now)
        self._read(now)

    def bytes_to_send(self) -> list[bytes]:
        """Drain what must go out, in order."""
        self._pack()
        return self._websocket.bytes_to_send()

    def events(self) -> list[TunnelEvent]:
        """Drain what happened, in order."""
        events, self._events = self._events, []
        return events

    def deadline(self) -> float | None:
        """When `receive_timeout` has something to do; None if it has nothing."""
        deadlines = [d for d in (self._websocket.deadline(), self._session.deadline()) if d is not None]
        return min(deadlines, default=None)

    def receive_timeout(self, now: float) -> None:
        """Do what is due: ping, give a silent peer up, stop waiting for a close frame."""
        self._session.receive_timeout(now)
        self._websocket.receive_timeout(now)
        self._read(now)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _read(self, now: float) -> None:
        session = self._session
        for event in self._websocket.events():
            if isinstance(event, bytes | memoryview):
                session.receive_bytes(event, now)
            elif isinstance(event, Opened):
                self._events.append(TunnelOpened())
            else:
                self._end(event)
        self._read_session()
        if session.finished and self._websocket.state is WebSocketState.OPEN:
            self._pack()
            self._websocket.close(now, 1002, "the yamux session failed")
        elif session.state is YamuxSessionState.LEAVING and not session.stream_ids:
            self.close(
                now, reason="the other side accepts no further streams"
            )  # so that another connection can be made

    def _read_session(self) -> None:
        for event in self._session.events():
            self._receive_event(event)

    def _receive_event(self, event: YamuxEvent) -> None:
        if isinstance(event, StreamData | StreamWritable | StreamEnded):
            self._events.append(event)
        elif isinstance(event, StreamReset):
            self._forget(event.stream_id)
            self._events.append(event)
        elif isinstance(event, SessionEnded):
            self._say_closed(TunnelClosed(reason=event.reason))

    def _end(self, event: Closed | Refused) -> None:
        """The websocket is over: so is the session."""
        self._read_session()
        if isinstance(event, Refused):
            closed = TunnelClosed(reason=f"the server answered the upgrade with {event.status}", refused=event)
        else:
            closed = TunnelClosed(reason=event.reason or f"the websocket was closed with code {event.code}")
        self._session.receive_eof(closed.reason)
        resets = [event for event in self._session.events() if isinstance(event, StreamReset)]
        for reset in resets:
            self._receive_event(reset)
        self._say_closed(closed)

    def _say_closed(self, event: TunnelClosed) -> None:
        if not self._over:
            self._over = True
            self._events.append(event)

    @abc.abstractmethod
    def _pack(self) -> None:
        """Make messages of the session's frames."""

    @abc.abstractmethod
    def _forget(self, stream_id: int) -> None:
        """Drop what is kept of a stream that is over."""


class ClientTunnel(_Tunnel):
    """The client's end, over a websocket that `WebSocket.connect` made."""

    def __init__(self, websocket: WebSocket, limits: YamuxLimits) -> None:
        super().__init__(websocket, Yamux(client=True, limits=limits))
        self._asking: set[int] = set()
        """Streams whose status has not come yet."""
        self._refused: set[int] = set()
        """Streams that are over for us, while what the session still says of them is being read."""

    def open_stream(self, target: TunnelTarget, now: float) -> int:
        """Open a stream that leads to `target`. Data may follow at once; it is lost if the target refuses.

        Raises:
            LocalProtocolError: the tunnel is not open, or has too many streams.
        """
        stream_id = self._session.open_stream()
        self._session.send_data(stream_id, target.encode())
        self._asking.add(stream_id)
        if self._session.round_trip is None:
            self._session.ping(now)
        return stream_id

    def _pack(self) -> None:
        """One frame a message, as every server expects."""
        for frame in self._session.bytes_to_send():
            if self._websocket.state is WebSocketState.OPEN:
                self._websocket.send_binary(frame)

    def _read_session(self) -> None:
        super()._read_session()
        self._refused.clear()

    def _receive_event(self, event: YamuxEvent) -> None:
        if isinstance(event, StreamOpened):
            if self._session.has_stream(event.stream_id):  # a server has no business opening streams
                self._session.reset_stream(event.stream_id)
            self._refused.add(event.stream_id)
        elif isinstance(event, StreamData | StreamEnded | StreamReset) and event.stream_id in self._refused:
            pass
        elif isinstance(event, StreamData) and event.stream_id in self._asking:
            self._asking.discard(event.stream_id)
            self._read_status(event)
        elif isinstance(event, StreamEnded | StreamReset) and event.stream_id in self._asking:
            self._asking.discard(event.stream_id)
            self._refuse(event.stream_id, None)
        else:
            super()._receive_event(event)

    def _read_status(self, event: StreamData) -> None:
        status = event.data[0]
        self._session.consume(event.stream_id, 1)
        if status != TunnelStatus.CONNECTED:
            self._refuse(event.stream_id, status)
            return
        self._events.append(StreamConnected(event.stream_id))
        if len(event.data) > 1:
            self._events.append(StreamData(event.stream_id, event.data[1:]))

    def _refuse(self, stream_id: int, status: int | None) -> None:
        if self._session.has_stream(stream_id):
            self._session.reset_stream(stream_id)
        self._refused.add(stream_id)
        self._events.append(StreamRefused(stream_id, status))

    def _forget(self, stream_id: int) -> None:
        self._asking.discard(stream_id)


class DaemonTunnel(_Tunnel):
    """The daemon's end, over a websocket that `WebSocket.accept` made."""

    def __init__(self, websocket: WebSocket, limits: YamuxLimits) -> None:
        super().__init__(websocket, Yamux(client=False, limits=limits))
        self._preambles: dict[int, PreambleParser] = {}

    def answer(self, stream_id: int, status: TunnelStatus) -> None:
        """Tell the client what became of its stream, which ends with any answer but `CONNECTED`.

        Raises:
            LocalProtocolError: there is no such stream.
        """
        self._session.send_data(stream_id, bytes((status,)))
        if status is not TunnelStatus.CONNECTED:
            self._session.end_stream(stream_id)

    def _read(self, now: float) -> None:
        super()._read(now)
        if self._session.stream_ids and self._session.round_trip is None:
            self._session.ping(now)  # how far the client is says how its windows may grow

    def _pack(self) -> None:
        """As many frames a message as there are."""
        batch: list[bytes | bytearray] = []
        size = 0
        for frame in self._session.bytes_to_send():
            if size + len(frame) > MAX_BATCH_BYTES:
                self._send_batch(batch)
                batch, size = [], 0
            batch.append(frame)
            size += len(frame)
        self._send_batch(batch)

    def _send_batch(self, batch: list[bytes | bytearray]) -> None:
        if batch and self._websocket.state is WebSocketState.OPEN:
            self._websocket.send_binary(batch[0] if len(batch) == 1 else b"".join(batch))

    def _receive_event(self, event: YamuxEvent) -> None:
        # Whatever is read here may be over already, by a reset that came with it.
        if isinstance(event, StreamOpened):
            if self._session.has_stream(event.stream_id):
                self._session.accept_stream(event.stream_id)
            self._preambles[event.stream_id] = PreambleParser()
        elif isinstance(event, StreamData) and event.stream_id in self._preambles:
            self._read_preamble(event)
        elif isinstance(event, StreamEnded) and event.stream_id in self._preambles:
            if self._session.has_stream(event.stream_id):
                self._session.reset_stream(event.stream_id)
                self._forget(event.stream_id)
        elif isinstance(event, StreamReset) and event.stream_id in self._preambles:
            self._forget(event.stream_id)
        elif not isinstance(event, PeerLeaving):
            super()._receive_event(event)

    def _read_preamble(self, event: StreamData) -> None:
        stream_id = event.stream_id
        read = self._preambles[stream_id].receive_bytes(event.data)
        target, rest = (None, b"") if read is None else read
        self._session.consume(stream_id, len(event.data) - len(rest))
        if target is None:
            return
        self._forget(stream_id)
        if isinstance(target, TunnelStatus):
            if self._session.has_stream(stream_id):
                self.answer(stream_id, target)
            return
        self._events.append(DialRequested(stream_id, target))
        if rest:
            self._events.append(StreamData(stream_id, memoryview(rest)))

    def _forget(self, stream_id: int) -> None:
        self._preambles.pop(stream_id, None)
