"""Many byte streams over one, by yamux (wire protocol, sections 5.2 and 5.3), either role.

A driver calls `receive_bytes` or `receive_eof`, then sends what `bytes_to_send` returns, then looks at `events`. What
a peer may do is checked before it is believed: the first illegal frame is answered by a go-away, becomes a
`SessionEnded`, and nothing is read any more.

A stream's receive window says how much may be on its way to whoever consumes it. Credit is granted for what was
consumed, never for what merely arrived, so a slow consumer stops its sender and no other. Where consuming keeps up
with arriving, the window doubles, up to a limit of the stream and to one of the session.
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

from ..errors import LocalProtocolError
from .states import step
from .yamux_events import (
    INITIAL_WINDOW,
    PeerLeaving,
    PingAnswered,
    SessionEnded,
    StreamAccepted,
    StreamData,
    StreamEnded,
    StreamOpened,
    StreamReset,
    StreamWritable,
    YamuxEvent,
    YamuxLimits,
)
from .yamux_states import (
    YAMUX_SESSION_TRANSITIONS,
    YAMUX_STREAM_TRANSITIONS,
    YamuxInput,
    YamuxSessionInput,
    YamuxSessionState,
    YamuxStreamState,
)

__all__ = [
    "GO_AWAY_NORMAL",
    "GO_AWAY_PROTOCOL_ERROR",
    "Yamux",
]

GO_AWAY_NORMAL: Final = 0
GO_AWAY_PROTOCOL_ERROR: Final = 1

HEADER: Final = struct.Struct(">BBHII")
HEADER_SIZE: Final = HEADER.size
_HIGHEST: Final = 2**32 - 1

_DATA, _WINDOW_UPDATE, _PING, _GO_AWAY = range(4)
_SYN, _ACK, _FIN, _RST = 1, 2, 4, 8
_ALL_FLAGS: Final = _SYN | _ACK | _FIN | _RST
_GUESSED_ROUND_TRIP: Final = 0.05
"""Seconds that a round trip is thought to take before one was measured."""
_HURRY: Final = 4
"""Round trips within which one and a half windows must have come for the window to grow."""
MAX_SKIPPED_IDS: Final = 256
"""Ids that the peer has passed over and may still use. One that opens streams from several threads sends them so."""


class _ViolationError(Exception):
    """The peer did what it must not."""


@attrs.define(eq=False)
class _Stream:
    id: int
    window: int
    """What may be unconsumed at a time."""
    state: YamuxStreamState = YamuxStreamState.OPEN
    send_window: int = INITIAL_WINDOW
    receive_window: int = INITIAL_WINDOW
    """What the peer may still send."""
    unconsumed: int = 0
    credit: int = 0
    """What was consumed and not granted anew yet."""
    arrived: int = 0
    """What has come since `counted_from`."""
    counted_from: float = 0.0
    arrived_at: float = 0.0
    keen: bool = False
    """Whether it comes, and is consumed, as fast as the window allows."""
    accepted: bool = True
    awaits_ack: bool = False
    """Whether we opened it, and the peer has not acknowledged it."""


class Yamux:
    """One session over an ordered, reliable transport that the caller moves the bytes of."""

    def __init__(self, *, client: bool, limits: YamuxLimits | None = None) -> None:
        self.state: YamuxSessionState = YamuxSessionState.OPEN
        self.round_trip: float | None = None
        """Seconds, as the last ping measured it; None before."""
        self._limits = limits or YamuxLimits()
        self._streams: dict[int, _Stream] = {}
        self._next_id = 1 if client else 2
        self._last_peer_id = 0 if client else -1
        self._skipped: set[int] = set()
        self._unaccepted = 0
        self._grown = 0
        self._out: list[bytes | bytearray] = []
        self._events: list[YamuxEvent] = []
        self._head = b""
        self._stream: _Stream | None = None
        """Whose data frame is half read; None also while what remains of it is dropped."""
        self._remaining = 0
        self._end_flags = 0
        self._now = 0.0
        self._heard_at: float | None = None
        self._ping: tuple[int, float] | None = None
        self._next_ping = 1

    # --- what is there -----------------------------------------------------------------------------------------------

    @property
    def stream_ids(self) -> list[int]:
        """The streams that are open in at least one direction."""
        return list(self._streams)

    def has_stream(self, stream_id: int) -> bool:
        """Whether a stream is open in at least one direction."""
        return stream_id in self._streams

    @property
    def finished(self) -> bool:
        """Whether the transport is of no more use, once `bytes_to_send` is drained."""
        return self.state is YamuxSessionState.ENDED or self.state is YamuxSessionState.FAILED

    def send_window(self, stream_id: int) -> int:
        """How many bytes `send_data` takes now; 0 also for a stream that sends no more."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.state is YamuxStreamState.HALF_LOCAL:
            return 0
        return stream.send_window

    # --- intents -----------------------------------------------------------------------------------------------------

    def open_stream(self) -> int:
        """Open a stream and return its id. Data may follow at once.

        Raises:
            LocalProtocolError: the session is over or ending, or there are too many streams, or no more ids.
        """
        if self.state is not YamuxSessionState.OPEN:
            raise LocalProtocolError(f"a session that is {self.state.value} opens no stream")
        if len(self._streams) >= self._limits.max_streams:
            raise LocalProtocolError(f"there are {self._limits.max_streams} streams already; end one first")
        if self._next_id > _HIGHEST:
            raise LocalProtocolError("the session has no more stream ids; begin another one")
        stream = self._streams[self._next_id] = _Stream(self._next_id, INITIAL_WINDOW, awaits_ack=True)
        self._next_id += 2
        self._send(_WINDOW_UPDATE, _SYN, stream.id, self._enlarge(stream, self._limits.window))
        return stream.id

    def accept_stream(self, stream_id: int) -> None:
        """Acknowledge a stream of the peer's.

        Raises:
            LocalProtocolError: there is no such stream, or it was accepted already.
        """
        stream = self._known(stream_id)
        if stream.accepted:
            raise LocalProtocolError(f"stream {stream_id} was accepted already")
        stream.accepted = True
        self._unaccepted -= 1
        self._send(_WINDOW_UPDATE, _ACK, stream_id, self._enlarge(stream, self._limits.window))

    def send_data(self, stream_id: int, data: bytes | memoryview) -> None:
        """Queue bytes on a stream.

        Raises:
            LocalProtocolError: there is no such stream, it sends no more, or this is more than its `send_window`.
        """
        stream = self._known(stream_id)
        if stream.state is YamuxStreamState.HALF_LOCAL:
            raise LocalProtocolError(f"stream {stream_id} was ended and sends no more")
        size = len(data)
        if size > stream.send_window:
            raise LocalProtocolError(f"stream {stream_id} may send {stream.send_window} bytes now, not {size}")
        stream.send_window -= size
        most = self._limits.max_frame_bytes
        view = memoryview(data)
        for start in range(0, size, most):
            piece = view[start : start + most]
            frame = bytearray(HEADER.pack(0, _DATA, 0, stream_id, len(piece)))
            frame += piece
            self._out.append(frame)

    def end_stream(self, stream_id: int) -> None:
        """Say that no more data follows; the peer may go on.

        Raises:
            LocalProtocolError: there is no such stream, or it was ended already.
        """
        self._move(self._known(stream_id), YamuxInput.SEND_FIN)
        self._send(_WINDOW_UPDATE, _FIN, stream_id, 0)

    def reset_stream(self, stream_id: int) -> None:
        """Break a stream off, in both directions. What the peer still sends on it is dropped.

        Raises:
            LocalProtocolError: there is no such stream.
        """
        self._move(self._known(stream_id), YamuxInput.SEND_RST)
        self._send(_WINDOW_UPDATE, _RST, stream_id, 0)

    def consume(self, stream_id: int, size: int) -> None:
        """Say that `size` bytes of what a stream received were taken. For a stream that is over nothing happens.

        Raises:
            LocalProtocolError: the stream has not received so much.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if size > stream.unconsumed:
            raise LocalProtocolError(f"stream {stream_id} has {stream.unconsumed} bytes to consume, not {size}")
        stream.unconsumed -= size
        stream.credit += size
        if stream.credit * 2 >= stream.window and stream.state is not YamuxStreamState.HALF_REMOTE:
            self._grant(stream)

    def ping(self, now: float) -> None:
        """Measure the round trip, unless that is being done.

        Raises:
            LocalProtocolError: the session is over.
        """
        self._require_usable()
        if self._heard_at is None:
            self._heard_at = now  # from here on, silence means something
        if self._ping is None:
            self._ping = self._next_ping, now
            self._send(_PING, _SYN, 0, self._next_ping)
            self._next_ping = self._next_ping % _HIGHEST + 1

    def go_away(self, code: int = GO_AWAY_NORMAL) -> None:
        """Say that no further stream is accepted.

        Raises:
            LocalProtocolError: the session is over.
        """
        self._require_usable()
        self.state = step(YAMUX_SESSION_TRANSITIONS, self.state, YamuxSessionInput.GO_AWAY)
        self._send(_GO_AWAY, 0, 0, code)

    # --- moving bytes and time ---------------------------------------------------------------------------------------

    def bytes_to_send(self) -> list[bytes | bytearray]:
        """Drain what must go out, in order; each item is one whole frame."""
        out, self._out = self._out, []
        return out

    def events(self) -> list[YamuxEvent]:
        """Drain what happened, in order."""
        events, self._events = self._events, []
        return events

    def receive_bytes(self, data: bytes | memoryview, now: float) -> None:
        """Take bytes from the transport, cut anywhere. They must not change afterwards: events refer to them."""
        if self.finished or not data:
            return
        self._now = self._heard_at = now
        try:
            self._read(memoryview(data))
        except _ViolationError as error:
            self._send(_GO_AWAY, 0, 0, GO_AWAY_PROTOCOL_ERROR)
            self._end(YamuxSessionInput.FAIL, SessionEnded(reason=str(error), violation=True))

    def receive_eof(self, reason: str = "the connection ended") -> None:
        """The transport ended: every stream is reset."""
        if not self.finished:
            self._end(YamuxSessionInput.END, SessionEnded(reason=reason))

    def deadline(self) -> float | None:
        """When `receive_timeout` has something to do; None if it has nothing."""
        interval = self._limits.ping_interval
        if self.finished or interval is None or self._heard_at is None:
            return None
        if self._ping is not None:
            return max(self._heard_at, self._ping[1]) + self._limits.ping_timeout
        return self._heard_at + interval

    def receive_timeout(self, now: float) -> None:
        """Do what is due: send a ping, or give a silent peer up."""
        deadline = self.deadline()
        if deadline is None or now < deadline:
            return
        if self._ping is None:
            self.ping(now)
            return
        reason = f"the peer answered no ping for {self._limits.ping_timeout:g} s"
        self._end(YamuxSessionInput.FAIL, SessionEnded(reason=reason, silent=True))

    # --- reading -----------------------------------------------------------------------------------------------------

    def _read(self, data: memoryview) -> None:
        position, total = 0, len(data)
        while position < total and not self.finished:
            if self._remaining:
                taken = min(self._remaining, total - position)
                self._take(data[position : position + taken])
                position += taken
                continue
            if self._head or total - position < HEADER_SIZE:
                missing = HEADER_SIZE - len(self._head)
                self._head += data[position : position + missing]
                position += missing
                if len(self._head) < HEADER_SIZE:
                    return
                header, self._head = HEADER.unpack(self._head), b""
            else:
                header = HEADER.unpack_from(data, position)
                position += HEADER_SIZE
            self._read_header(*header)

    def _read_header(self, version: int, kind: int, flags: int, stream_id: int, length: int) -> None:
        if version:
            raise _ViolationError(f"a frame has version {version}, not 0")
        if kind > _GO_AWAY:
            raise _ViolationError(f"a frame has the unknown type {kind}")
        if flags & ~_ALL_FLAGS:
            raise _ViolationError(f"a frame has the unknown flags {flags:#x}")
        if kind >= _PING:
            if stream_id:
                raise _ViolationError(f"a frame of the session names stream {stream_id}")
            self._read_session_frame(kind, flags, length)
            return
        if not stream_id:
            raise _ViolationError("a frame of a stream names stream 0")
        stream = self._open_by_peer(stream_id) if flags & _SYN else self._find(stream_id)
        if stream is not None and flags & _ACK:
            if not stream.awaits_ack:
                raise _ViolationError(f"stream {stream_id} was acknowledged, and that was not to be")
            stream.awaits_ack = False
            self._events.append(StreamAccepted(stream_id))
        if kind == _DATA:
            self._begin_data(stream, flags, length)
        elif stream is not None:
            self._add_window(stream, length)
            self._read_end(stream, flags)

    def _read_session_frame(self, kind: int, flags: int, value: int) -> None:
        if flags not in ((_SYN, _ACK) if kind == _PING else (0,)):
            raise _ViolationError(f"a {'ping' if kind == _PING else 'go-away'} has the flags {flags:#x}")
        if kind == _GO_AWAY:
            if value != GO_AWAY_NORMAL:
                self._end(YamuxSessionInput.END, SessionEnded(reason=f"the peer gave up: go-away with code {value}"))
            else:
                self.state = step(YAMUX_SESSION_TRANSITIONS, self.state, YamuxSessionInput.GO_AWAY)
                self._events.append(PeerLeaving())
        elif flags & _SYN:
            self._send(_PING, _ACK, 0, value)
        elif self._ping is not None and self._ping[0] == value:
            self.round_trip = max(self._now - self._ping[1], 0.0)
            self._ping = None
            self._events.append(PingAnswered(self.round_trip))

    def _open_by_peer(self, stream_id: int) -> _Stream | None:
        if stream_id % 2 == self._next_id % 2:
            raise _ViolationError(f"the peer opened stream {stream_id}, whose number is for us to use")
        if stream_id > self._last_peer_id:
            passed_over = range(self._last_peer_id + 2, stream_id, 2)
            self._skipped.update(passed_over[: MAX_SKIPPED_IDS - len(self._skipped)])
            self._last_peer_id = stream_id
        elif stream_id in self._skipped:
            self._skipped.remove(stream_id)
        else:
            raise _ViolationError(f"the peer opened stream {stream_id} a second time")
        full = len(self._streams) >= self._limits.max_streams or self._unaccepted >= self._limits.backlog
        if full or self.state is not YamuxSessionState.OPEN:
            self._send(_WINDOW_UPDATE, _RST, stream_id, 0)
            return None
        stream = self._streams[stream_id] = _Stream(stream_id, INITIAL_WINDOW, accepted=False)
        self._unaccepted += 1
        self._events.append(StreamOpened(stream_id))
        return stream

    def _find(self, stream_id: int) -> _Stream | None:
        """The stream; None for one that is over, of which frames may still be on their way."""
        stream = self._streams.get(stream_id)
        if stream is None:
            ours = stream_id % 2 == self._next_id % 2
            if stream_id >= self._next_id if ours else stream_id > self._last_peer_id or stream_id in self._skipped:
                raise _ViolationError(f"a frame is for stream {stream_id}, which was never opened")
        return stream

    def _begin_data(self, stream: _Stream | None, flags: int, length: int) -> None:
        if stream is not None and length:
            if stream.state is YamuxStreamState.HALF_REMOTE:
                raise _ViolationError(f"stream {stream.id} was ended, and {length} bytes followed")
            if length > stream.receive_window:
                left = stream.receive_window
                raise _ViolationError(f"stream {stream.id} got {length} bytes where {left} were allowed")
            stream.receive_window -= length
            self._watch_pace(stream, length)
        if not length:
            if stream is not None:
                self._read_end(stream, flags)
            return
        self._stream, self._remaining, self._end_flags = stream, length, flags

    def _take(self, payload: memoryview) -> None:
        stream = self._stream
        self._remaining -= len(payload)
        if stream is not None and stream.id in self._streams:  # we may have reset it in the middle of a frame
            stream.unconsumed += len(payload)
            self._events.append(StreamData(stream.id, payload))
            if not self._remaining:
                self._read_end(stream, self._end_flags)
        if not self._remaining:
            self._stream = None

    def _add_window(self, stream: _Stream, delta: int) -> None:
        if stream.send_window + delta > _HIGHEST:
            raise _ViolationError(f"stream {stream.id} got credit for more than {_HIGHEST} bytes")
        if delta and not stream.send_window and stream.state is not YamuxStreamState.HALF_LOCAL:
            self._events.append(StreamWritable(stream.id))
        stream.send_window += delta

    def _read_end(self, stream: _Stream, flags: int) -> None:
        if flags & _RST:
            self._move(stream, YamuxInput.RECEIVE_RST)
            self._events.append(StreamReset(stream.id))
        elif flags & _FIN:
            if stream.state is YamuxStreamState.HALF_REMOTE:
                raise _ViolationError(f"stream {stream.id} was ended twice")
            self._move(stream, YamuxInput.RECEIVE_FIN)
            self._events.append(StreamEnded(stream.id))

    # --- the rest ----------------------------------------------------------------------------------------------------

    def _watch_pace(self, stream: _Stream, length: int) -> None:
        """See whether a stream uses its window up in a few round trips, which it can only if all is consumed at once.

        Half of one and a half windows was on its way only after as much had been consumed. So the times of arrival say
        how fast the consumer is, too.
        """
        now = self._now
        patience = _HURRY * (_GUESSED_ROUND_TRIP if self.round_trip is None else self.round_trip)
        if now - stream.arrived_at > patience:  # it was idle
            stream.arrived, stream.counted_from = 0, now
        stream.arrived += length
        stream.arrived_at = now
        if stream.arrived * 2 >= stream.window * 3:
            stream.keen = now - stream.counted_from <= patience
            stream.arrived, stream.counted_from = 0, now

    def _grant(self, stream: _Stream) -> None:
        """Give credit for what was consumed; more of it if the window holds the stream up."""
        delta = stream.credit
        stream.credit = 0
        stream.receive_window += delta
        if stream.keen:
            stream.keen = False
            delta += self._enlarge(stream, 2 * stream.window)
        self._send(_WINDOW_UPDATE, 0, stream.id, delta)

    def _enlarge(self, stream: _Stream, size: int) -> int:
        """Let a stream's window grow to `size`, as far as that is allowed; return by how much it grew."""
        wanted = min(size, self._limits.max_window) - stream.window
        growth = max(0, min(wanted, self._limits.max_windows - self._grown))
        stream.window += growth
        stream.receive_window += growth
        self._grown += growth
        return growth

    def _known(self, stream_id: int) -> _Stream:
        stream = self._streams.get(stream_id)
        if stream is None:
            raise LocalProtocolError(f"there is no stream {stream_id}, or it is over")
        return stream

    def _require_usable(self) -> None:
        if self.finished:
            raise LocalProtocolError(f"the session has {self.state.value}")

    def _move(self, stream: _Stream, input: YamuxInput) -> None:
        stream.state = step(YAMUX_STREAM_TRANSITIONS, stream.state, input)
        if not YAMUX_STREAM_TRANSITIONS[stream.state]:
            self._forget(stream)

    def _forget(self, stream: _Stream) -> None:
        del self._streams[stream.id]
        self._grown -= stream.window - INITIAL_WINDOW
        if not stream.accepted:
            self._unaccepted -= 1

    def _end(self, input: YamuxSessionInput, event: SessionEnded) -> None:
        self.state = step(YAMUX_SESSION_TRANSITIONS, self.state, input)
        for stream in list(self._streams.values()):
            self._move(stream, YamuxInput.RECEIVE_RST)
            self._events.append(StreamReset(stream.id))
        self._events.append(event)
        self._stream, self._remaining, self._head = None, 0, b""

    def _send(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        self._out.append(HEADER.pack(0, kind, flags, stream_id, value))
