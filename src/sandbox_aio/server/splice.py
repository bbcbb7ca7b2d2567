"""Two connections joined after 101: bytes pass as they come, and a close frame can be put between two frames.

Per read of the event loop there is one write and one walk over the websocket frame headers (RFC 6455, section 5.2) that
the daemon sent: nothing is unmasked, copied or decoded. Back-pressure, half-close and loss pass from side to side.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from .limits import HALF_CLOSED_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from .streams import Stream

__all__ = ["FrameFollower", "Splice", "close_frame", "text_frame"]

CLOSE: Final = 0x88
"""The first byte of a close frame."""


def close_frame(code: int, reason: str = "") -> bytes:
    """A server's close frame. The reason is at most 123 bytes."""
    payload = code.to_bytes(2, "big") + reason.encode()[:123]
    return bytes((CLOSE, len(payload))) + payload


def text_frame(text: str) -> bytes:
    """A server's unfragmented text message of at most 65,535 bytes."""
    payload = text.encode()
    if len(payload) < 126:
        return bytes((0x81, len(payload))) + payload
    return b"\x81\x7e" + len(payload).to_bytes(2, "big") + payload


class FrameFollower:
    """Knows where in a stream of unmasked or masked websocket frames the boundaries between two frames are."""

    def __init__(self) -> None:
        self._skip = 0
        """Bytes of the current frame that are still to come."""
        self._head = b""
        """The part of the next frame's header that has come."""
        self.in_message: bool = False
        """Whether the last data frame was not the final one of its message."""

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes so far end with a whole frame."""
        return not self._skip and not self._head

    def advance(self, data: bytes) -> None:
        """Follow all of `data`."""
        self._walk(data, to_boundary=False)

    def advance_to_boundary(self, data: bytes) -> int | None:
        """Follow `data` to the first boundary after its start; return that position, or None if it is not in `data`."""
        return self._walk(data, to_boundary=True)

    def _walk(self, data: bytes, *, to_boundary: bool) -> int | None:
        size = len(data)
        position = self._skip
        if self._head:
            data = self._head + data
            position = 0
        offset = len(data) - size  # what `data` begins with and the caller has counted before
        size = len(data)
        self._head = b""
        if to_boundary and not offset and 0 < position <= size:
            self._skip = 0
            return position
        while position < size:
            if not to_boundary and position + 1 < size and (length := data[position + 1]) < 126:
                # The common short frame, without a call.
                if not data[position] & 0x08:
                    self.in_message = data[position] < 0x80
                position += 2 + length
                continue
            end = self._frame_end(data, position, size)
            if end is None:
                self._head = data[position:]
                self._skip = 0
                return None
            position = end
            if to_boundary:
                self._skip = max(0, position - size)
                return position - offset if position <= size else None
        self._skip = position - size
        return None

    def _frame_end(self, data: bytes, position: int, size: int) -> int | None:
        """Read the header at `position` and return where its frame ends; None when the header is incomplete."""
        if size - position < 2:
            return None
        first, second = data[position], data[position + 1]
        length = second & 0x7F
        start = position + 2
        if length == 126:
            start += 2
            if size < start:
                return None
            length = (data[start - 2] << 8) | data[start - 1]
        elif length == 127:
            start += 8
            if size < start:
                return None
            length = int.from_bytes(data[start - 8 : start], "big")
        if second & 0x80:
            start += 4  # A daemon does not mask; if one does, its frames are followed all the same.
        if not first & 0x08:
            self.in_message = not first & 0x80
        return start + length


class _Side(asyncio.Protocol):
    """One of the two transports: what it receives goes to the other."""

    def __init__(self, splice: Splice, transport: asyncio.Transport) -> None:
        self.splice = splice
        self.transport = transport
        self.lost: bool = False
        self.ended: bool = False
        self.other: _Side

    def data_received(self, data: bytes) -> None:
        self.other.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        other = self.other
        if other.lost:
            return False
        if self.splice.departing or other.ended or not other.transport.can_write_eof():
            other.transport.close()
            return False
        with contextlib.suppress(OSError):  # it reset its connection a moment ago
            other.transport.write_eof()
        return self.transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.splice.side_lost(self, exc)

    def pause_writing(self) -> None:
        if not self.other.lost:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.other.lost:
            self.other.transport.resume_reading()


class _DaemonSide(_Side):
    """Follows the frames to the client; once the splice departs, lets through only the rest of the current one."""

    def data_received(self, data: bytes) -> None:
        splice = self.splice
        if not splice.departing:
            splice.follower.advance(data)
            self.other.transport.write(data)
        elif not splice.departed:
            boundary = splice.follower.advance_to_boundary(data)
            self.other.transport.write(data if boundary is None else data[:boundary])
            if boundary is not None:
                splice.say_farewell()

    def eof_received(self) -> bool:
        stays = super().eof_received()
        self.splice.end_within(HALF_CLOSED_TIMEOUT)
        return stays


class _ClientSide(_Side):
    def data_received(self, data: bytes) -> None:
        if not self.splice.departed:
            self.other.transport.write(data)


class Splice:
    """A public connection and a daemon's connection, joined until both are gone.

    `from_client` and `from_daemon` are what each has sent already beyond its HTTP head.
    `on_gone` is called once, when the client's connection is lost.
    """

    def __init__(
        self,
        client: Stream,
        daemon: Stream,
        *,
        from_client: bytes,
        from_daemon: bytes,
        on_gone: Callable[[Splice], None],
    ) -> None:
        self.follower: FrameFollower = FrameFollower()
        self.departing: bool = False
        self.departed: bool = False
        self.over: bool = False
        """Whether the client's connection is lost."""
        self.carries_command = False
        """Whether the messages are those of a command, which ends in an `error` frame when its sandbox goes."""
        self.farewell_said: asyncio.Event = asyncio.Event()
        self._farewell: tuple[bytes, bytes] = (b"", b"")
        self._deadline: asyncio.TimerHandle | None = None
        self._on_gone = on_gone
        self._client = _ClientSide(self, client.transport)
        self._daemon = _DaemonSide(self, daemon.transport)
        self._client.other, self._daemon.other = self._daemon, self._client
        from_client += client.take_over(self._client)
        from_daemon += daemon.take_over(self._daemon)
        if from_daemon:
            self._daemon.data_received(from_daemon)
        if from_client:
            self._client.data_received(from_client)
        for side, stream in ((self._client, client), (self._daemon, daemon)):
            if stream.lost:
                side.connection_lost(None)
            elif stream.ended and not side.eof_received():
                side.transport.close()

    def depart(self, code: int, *, last_message: str | None = None, within: float) -> None:
        """Close the websocket from here: at the next frame boundary send `last_message` and a close frame with `code`.

        The message is left out when the daemon is in the middle of a fragmented one. Whatever the client does, its
        connection is gone after `within` seconds.
        """
        if self.departing:
            return
        self.departing = True
        self._farewell = (text_frame(last_message) if last_message is not None else b"", close_frame(code))
        self.end_within(within)
        if self.follower.at_boundary:
            self.say_farewell()

    def end_within(self, seconds: float) -> None:
        """Have the client's connection gone after that time, whatever the client does."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(seconds, self._client.transport.abort)

    def say_farewell(self) -> None:
        """Send the last frames and end our side; the client closes its own when it has read them.

        Where the daemon has ended its side already, so have we, and nothing more can be said.
        """
        self.departed = True
        self.farewell_said.set()
        message, close = self._farewell
        transport = self._client.transport
        if not self._client.lost:
            if not self._daemon.ended:
                transport.write(close if self.follower.in_message else message + close)
            if self._daemon.ended or self._client.ended or not transport.can_write_eof():
                transport.close()
            else:
                with contextlib.suppress(OSError):
                    transport.write_eof()
                transport.resume_reading()
        self._daemon.transport.abort()

    def side_lost(self, side: _Side, exc: Exception | None) -> None:
        """A transport is gone: so is the other one, at once after an error, else after what is queued."""
        other = side.other
        if not other.lost and not (self.departed and side is self._daemon):
            if exc is not None or side is self._client:
                other.transport.abort()
            else:
                other.transport.close()
        if side is self._client:
            self.over = True
            self.farewell_said.set()
            if self._deadline is not None:
                self._deadline.cancel()
            self._on_gone(self)
