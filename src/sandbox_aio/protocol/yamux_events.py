"""What a yamux session says and how much it takes; see `yamux`."""

from __future__ import annotations

from typing import Final, TypeAlias

import attrs

__all__ = [
    "INITIAL_WINDOW",
    "PeerLeaving",
    "PingAnswered",
    "SessionEnded",
    "StreamAccepted",
    "StreamData",
    "StreamEnded",
    "StreamOpened",
    "StreamReset",
    "StreamWritable",
    "YamuxEvent",
    "YamuxLimits",
]

INITIAL_WINDOW: Final = 256 * 1024
"""Bytes that either side may send on a new stream before it hears of credit; the specification's."""


@attrs.frozen(kw_only=True)
class YamuxLimits:
    """Bounds of one session. Bytes, seconds and numbers of streams."""

    max_streams: int = 4096
    """Streams that are in the table; one more is refused by a reset, and cannot be opened."""
    backlog: int = 256
    """Streams that the peer has opened and that were not accepted yet."""
    max_frame_bytes: int = 32 * 1024
    """The payload of a data frame that is sent."""
    window: int = INITIAL_WINDOW
    """What a stream may receive from the start; beyond `INITIAL_WINDOW`, the SYN or the ACK says so."""
    max_window: int = 4 * 2**20
    """What a stream's receive window may grow to."""
    max_windows: int = 64 * 2**20
    """What all receive windows of a session may have grown by, together."""
    ping_interval: float | None = 30.0
    """Send a ping after this much silence; None never."""
    ping_timeout: float = 30.0
    """Give the peer up when this much more silence follows a ping."""


@attrs.frozen
class StreamOpened:
    """The peer opened a stream; accept or reset it."""

    stream_id: int


@attrs.frozen
class StreamAccepted:
    """The peer acknowledged a stream of ours. Not every peer does."""

    stream_id: int


@attrs.frozen
class StreamData:
    """Bytes of a stream, at least one. Once they are consumed, say so by `consume`."""

    stream_id: int
    data: memoryview


@attrs.frozen
class StreamWritable:
    """A stream whose send window was used up may send again."""

    stream_id: int


@attrs.frozen
class StreamEnded:
    """The peer sends no more on this stream."""

    stream_id: int


@attrs.frozen
class StreamReset:
    """The peer broke a stream off, or the session ended with it: what was not received is lost."""

    stream_id: int


@attrs.frozen
class PingAnswered:
    """A ping came back."""

    round_trip: float
    """Seconds."""


@attrs.frozen
class PeerLeaving:
    """The peer accepts no further streams; those that are open go on."""


@attrs.frozen(kw_only=True)
class SessionEnded:
    """The session is over, and so is every stream; nothing follows."""

    reason: str
    violation: bool = False
    """Whether the peer broke the protocol, in which case `reason` says how."""
    silent: bool = False
    """Whether the peer was given up because it answered no ping."""


YamuxEvent: TypeAlias = (
    StreamOpened
    | StreamAccepted
    | StreamData
    | StreamWritable
    | StreamEnded
    | StreamReset
    | PingAnswered
    | PeerLeaving
    | SessionEnded
)
