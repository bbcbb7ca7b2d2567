"""One websocket connection (RFC 6455), either role, on wsproto, with what wsproto lacks.

wsproto does the masking, control frames and fragments; `upgrade` does the handshake. Around it stands a reader of frame
headers which bounds the size of a message before it is buffered, hands whole unmasked text messages over without
further work (nearly all of what a client receives), joins fragments, and makes the first violation final: afterwards
nothing is read any more.

A driver calls `receive_bytes` or `receive_eof`, then sends what `bytes_to_send` returns, then looks at `events`; once
`finished` is true it closes the transport. No frame is half a message: an item of `events` that is bytes-like is one
whole text or binary message.
"""

from __future__ import annotations

import attrs
from wsproto import ConnectionType
from wsproto.connection import Connection, ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from ..errors import LocalProtocolError
from .masking import MaskingKeys, mask
from .states import WEBSOCKET_TRANSITIONS, WebSocketInput, WebSocketState, step
from .upgrade import ClientUpgrade, Headers, Refused, UpgradeError, answer_upgrade

__all__ = ["Closed", "Opened", "Refused", "WebSocket", "WebSocketEvent", "WebSocketLimits"]


@attrs.frozen(kw_only=True)
class WebSocketLimits:
    """Bounds, in bytes and seconds."""

    max_message_bytes: int = 16 * 2**20
    """The largest message that is accepted, fragments joined."""
    max_head_bytes: int = 64 * 2**10
    """The largest head of a response to the upgrade."""
    max_refusal_bytes: int = 16 * 2**10
    """How much of the body of a refusal is kept."""
    ping_interval: float | None = None
    """Send a ping after this much silence; None never."""
    ping_timeout: float = 60.0
    """Give the peer up when this much more silence follows a ping."""
    close_timeout: float = 5.0
    """How long to wait for the answer to a close frame."""


@attrs.frozen(kw_only=True)
class Opened:
    """The upgrade succeeded."""


@attrs.frozen(kw_only=True)
class Closed:
    """The connection is over; nothing follows.

    1006: it broke off without a close frame. 1002, 1007, 1009: the peer broke the protocol.
    """

    code: int
    reason: str
    violation: bool = False
    """Whether it was the peer's misbehaviour, in which case `reason` says what it did."""
    silent: bool = False
    """Whether the peer was given up because it answered no ping."""


WebSocketEvent = bytes | memoryview | Opened | Refused | Closed

_TEXT_FINAL = 0x81
_BINARY_FINAL = 0x82
_MASKED = 0x80
_TWO_BYTES = 126
"""The length that says that the real one follows in two bytes; the next one says eight."""
_CONTROL = 0x08
_MAX_CONTROL_BYTES = 125
_SMALL = 4096


class WebSocket:
    """The state of one connection. Make it with `connect` (client) or `accept` (server)."""

    def __init__(self, *, client: bool, limits: WebSocketLimits) -> None:
        self.state: WebSocketState = WebSocketState.CONNECTING
        self._client = client
        self._limits = limits
        self._upgrade: ClientUpgrade | None = None
        self._frames: Connection | None = None
        self._out: list[bytes] = []
        self._events: list[WebSocketEvent] = []
        self._tail = b""
        self._parts: list[bytes] = []
        self._needed = 0
        self._keys = MaskingKeys()
        self._message: bytearray | None = None
        self._heard_at: float | None = None
        self._ping_sent_at: float | None = None
        self._close_sent_at: float | None = None
        self._paused_at: float | None = None

    # --- making one --------------------------------------------------------------------------------------------------

    @classmethod
    def connect(
        cls, *, host: str, target: str, headers: Headers = (), limits: WebSocketLimits | None = None
    ) -> WebSocket:
        """Begin the client's side: the upgrade request is queued.

        Args:
            host: the value of the `Host` header.
            target: path and query.
            headers: more headers, as bytes; their names may not be those of the handshake itself.

        Raises:
            LocalProtocolError: the host, the target or a header cannot be sent.
        """
        websocket = cls(client=True, limits=limits or WebSocketLimits())
        websocket._upgrade = ClientUpgrade(
            host=host,
            target=target,
            headers=headers,
            max_head_bytes=websocket._limits.max_head_bytes,
            max_refusal_bytes=websocket._limits.max_refusal_bytes,
        )
        websocket._out.append(websocket._upgrade.request)
        return websocket

    @classmethod
    def accept(cls, *, headers: Headers, limits: WebSocketLimits | None = None, trailing: bytes = b"") -> WebSocket:
        """Begin the server's side from a request whose head was read by somebody else: the 101 is queued.

        Args:
            trailing: bytes of the connection that came behind the head.

        Raises:
            LocalProtocolError: the request is no valid upgrade to a websocket; answer it with 400.
        """
        websocket = cls(client=False, limits=limits or WebSocketLimits())
        websocket._out.append(answer_upgrade(headers))
        websocket._open()
        websocket._read_frames(trailing)
        return websocket

    # --- the five verbs ----------------------------------------------------------------------------------------------

    def receive_bytes(self, data: bytes | memoryview, now: float) -> None:
        """Feed what the transport delivered. Then call `bytes_to_send` and `events`.

        A memoryview may be of a buffer that is used again: what is kept is copied, except for the messages among the
        `events`, which may be views of it themselves.
        """
        if self.finished or not data:
            return
        self._heard_at = now
        self._ping_sent_at = None
        if self._upgrade is not None:
            self._read_upgrade(self._upgrade, bytes(data))
        else:
            self._read_frames(data)

    def receive_eof(self, now: float) -> None:
        """The peer ended its direction, or the connection broke."""
        if self.finished:
            return
        refusal = self._upgrade.receive_eof() if self._upgrade is not None else None
        if refusal is not None:
            self._end(WebSocketInput.FAIL, refusal)
            return
        where = "without a close frame" if self._upgrade is None else "during the upgrade"
        self._end(WebSocketInput.EOF, Closed(code=1006, reason=f"the connection ended {where}"))

    def send_text(self, text: str | bytes) -> None:
        """Queue one text message. As bytes it must be valid UTF-8; a server's message is not copied.

        Raises:
            LocalProtocolError: the connection is not open.
        """
        if self.state is not WebSocketState.OPEN:
            raise LocalProtocolError(f"a websocket that is {self.state.value} sends no message")
        assert self._frames is not None
        if self._client:
            text = str(text, "utf-8") if isinstance(text, bytes) else text
            self._out.append(self._frames.send(TextMessage(data=text)))
            return
        payload = text.encode() if isinstance(text, str) else text
        self._out.append(_header(_TEXT_FINAL, len(payload), 0))
        self._out.append(payload)

    def send_binary(self, payload: bytes | bytearray) -> None:
        """Queue one binary message. A `bytearray` is the websocket's from now on: a client masks it where it is.

        Raises:
            LocalProtocolError: the connection is not open.
        """
        if self.state is not WebSocketState.OPEN:
            raise LocalProtocolError(f"a websocket that is {self.state.value} sends no message")
        if self._client:
            key = self._keys.next()
            self._out.append(_header(_BINARY_FINAL, len(payload), _MASKED) + key)
            self._out.append(mask(payload, key))
        else:
            self._out.append(_header(_BINARY_FINAL, len(payload), 0))
            self._out.append(payload if isinstance(payload, bytes) else bytes(payload))

    def close(self, now: float, code: int = 1000, reason: str = "") -> None:
        """Queue a close frame and wait for the peer's, `close_timeout` at most.

        Raises:
            LocalProtocolError: the connection is not open.
        """
        self._step(WebSocketInput.CLOSE)
        assert self._frames is not None
        self._out.append(self._frames.send(CloseConnection(code=code, reason=reason)))
        self._close_sent_at = now

    def bytes_to_send(self) -> list[bytes]:
        """Drain what must go out, in order."""
        out, self._out = self._out, []
        return out

    def events(self) -> list[WebSocketEvent]:
        """Drain what happened, in order."""
        events, self._events = self._events, []
        return events

    @property
    def finished(self) -> bool:
        """Whether the transport is of no more use, once `bytes_to_send` is drained."""
        return self.state is WebSocketState.CLOSED or self.state is WebSocketState.FAILED

    def pause_reading(self, now: float) -> None:
        """Say that the driver does not read for now: silence proves nothing until `resume_reading`."""
        if self._paused_at is None:
            self._paused_at = now

    def resume_reading(self, now: float) -> None:
        """Say that the driver reads again. The time between does not count as silence."""
        if self._paused_at is not None:
            passed, self._paused_at = now - self._paused_at, None
            self._heard_at = None if self._heard_at is None else self._heard_at + passed
            self._ping_sent_at = None if self._ping_sent_at is None else self._ping_sent_at + passed

    def deadline(self) -> float | None:
        """When `receive_timeout` has something to do; None if it has nothing."""
        if self.state is WebSocketState.CLOSING and self._close_sent_at is not None:
            return self._close_sent_at + self._limits.close_timeout
        interval = self._limits.ping_interval
        if (
            self.state is not WebSocketState.OPEN
            or interval is None
            or self._heard_at is None
            or self._paused_at is not None
        ):
            return None
        if self._ping_sent_at is not None:
            return self._ping_sent_at + self._limits.ping_timeout
        return self._heard_at + interval

    def receive_timeout(self, now: float) -> None:
        """Do what is due: send a ping, give a silent peer up, stop waiting for a close frame."""
        deadline = self.deadline()
        if deadline is None or now < deadline:
            return
        if self.state is WebSocketState.CLOSING:
            self._end(WebSocketInput.EOF, Closed(code=1006, reason="the peer did not answer the close frame"))
        elif self._ping_sent_at is None:
            assert self._frames is not None
            self._out.append(self._frames.send(Ping()))
            self._ping_sent_at = now
        else:
            reason = f"the peer answered no ping for {self._limits.ping_timeout:g} s"
            self._end(WebSocketInput.FAIL, Closed(code=1006, reason=reason, silent=True))

    # --- the handshake -----------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._step(WebSocketInput.ACCEPT)
        self._upgrade = None
        self._frames = Connection(ConnectionType.CLIENT if self._client else ConnectionType.SERVER)

    def _read_upgrade(self, upgrade: ClientUpgrade, data: bytes) -> None:
        try:
            answer = upgrade.receive_bytes(data)
        except UpgradeError as exc:
            self._fail(1002, str(exc))
            return
        if isinstance(answer, Refused):
            self._end(WebSocketInput.FAIL, answer)
        elif answer is not None:
            self._open()
            self._events.append(Opened())
            self._read_frames(answer)

    # --- frames ------------------------------------------------------------------------------------------------------

    def _read_plain(self, data: bytes | memoryview, position: int) -> int:
        """Take the messages that are whole, unmasked and under 64 KiB, which is nearly all that a client receives.

        Returns: where they end.
        """
        if not self._client or self._message is not None:
            return position
        append, total, limit = self._events.append, len(data), self._limits.max_message_bytes
        while total - position >= 2 and ((first := data[position]) == _TEXT_FINAL or first == _BINARY_FINAL):
            size, start = data[position + 1], position + 2
            if size == _TWO_BYTES and total - start >= 2:
                size, start = data[start] << 8 | data[start + 1], start + 2
            elif size >= _TWO_BYTES:  # longer, or masked, or not all of its header is there
                break
            if start + size > total or size > limit:
                break
            position = start + size
            append(data[start:position])
        return position

    def _read_frames(self, data: bytes | memoryview) -> None:
        """Walk over the frames in `data`; keep what is not whole yet."""
        position = 0
        if self._needed:
            position = self._finish_frame(data)
            if self.finished:
                return
        elif self._tail:
            data = self._tail + data
            self._tail = b""
        total = len(data)
        position = self._read_plain(data, position)
        while (header := _read_header(data, position)) is not None:
            start, size = header
            if not self._accepts(data[position], size):
                return
            end = start + size
            if end > total:
                if end - position > _SMALL:
                    self._parts = [bytes(data[position:])]
                    self._needed = end - total
                    return
                break
            self._read_frame(data[position:end], start - position)
            if self.finished:
                return
            position = self._read_plain(data, end)
        self._tail = bytes(data[position:])

    def _accepts(self, first: int, size: int) -> bool:
        """Whether a frame of this size may be buffered; if not, the connection fails."""
        limit = self._limits.max_message_bytes
        if first & _CONTROL:
            if size > _MAX_CONTROL_BYTES:
                self._fail(1002, f"a control frame is over {_MAX_CONTROL_BYTES} bytes")
        elif size > limit - len(self._message or b""):
            self._fail(1009, f"a message is over {limit} bytes")
        return not self.finished

    def _read_frame(self, frame: bytes | memoryview, start: int) -> None:
        """Take one whole frame, whose payload begins at `start`."""
        first, masked, whole = frame[0], frame[1] & _MASKED, self._message is None
        if self._client and whole and not masked and (first == _TEXT_FINAL or first == _BINARY_FINAL):
            self._events.append(frame[start:])
        elif first == _BINARY_FINAL and masked and whole and not self._client:
            self._events.append(mask(frame[start:], bytes(frame[start - 4 : start])))
        else:
            self._read_slowly(bytes(frame))

    def _finish_frame(self, data: bytes | memoryview) -> int:
        """Add to the large frame that is not whole yet; return how much of `data` belongs to it."""
        size = min(self._needed, len(data))
        self._parts.append(bytes(data[:size]))
        self._needed -= size
        if not self._needed:
            frame = b"".join(self._parts)
            self._parts = []
            self._read_frames(frame)
        return size

    def _read_slowly(self, frame: bytes) -> None:
        """Give one whole frame to wsproto: control frames, fragments, masked, binary and invalid ones."""
        assert self._frames is not None
        self._frames.receive_data(frame)
        for event in self._frames.events():
            if isinstance(event, TextMessage | BytesMessage):
                self._receive_part(event)
            elif isinstance(event, Ping):
                if self.state is WebSocketState.OPEN:
                    self._out.append(self._frames.send(event.response()))
            elif isinstance(event, CloseConnection):
                self._receive_close(event)
            else:
                assert isinstance(event, Pong)

    def _receive_part(self, event: TextMessage | BytesMessage) -> None:
        if self._message is None:
            self._message = bytearray()
        self._message += event.data.encode() if isinstance(event, TextMessage) else event.data
        if event.message_finished:
            self._events.append(bytes(self._message))
            self._message = None

    def _receive_close(self, event: CloseConnection) -> None:
        assert self._frames is not None
        if self._frames.state in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING):  # wsproto could not parse it
            self._fail(int(event.code), event.reason or "a frame is invalid")
            return
        if self.state is WebSocketState.OPEN:
            self._out.append(self._frames.send(event.response()))
        self._end(WebSocketInput.PEER_CLOSE, Closed(code=int(event.code), reason=event.reason or ""))

    def _fail(self, code: int, reason: str) -> None:
        if self.state is WebSocketState.OPEN:
            assert self._frames is not None
            self._out.append(self._frames.send(CloseConnection(code=code, reason=reason)))
        self._end(WebSocketInput.FAIL, Closed(code=code, reason=reason, violation=True))

    def _end(self, input: WebSocketInput, event: Closed | Refused) -> None:
        """Be finished: say so, and let go of all that was half read."""
        self._step(input)
        self._events.append(event)
        self._tail, self._parts, self._needed, self._message = b"", [], 0, None
        self._upgrade = self._frames = None

    def _step(self, input: WebSocketInput) -> None:
        self.state = step(WEBSOCKET_TRANSITIONS, self.state, input)


def _read_header(data: bytes | memoryview, position: int) -> tuple[int, int] | None:
    """Return where the payload of the frame at `position` begins and its size; None if its header is not whole."""
    if len(data) - position < 2:
        return None
    size = data[position + 1] & ~_MASKED
    start = position + 2
    if size >= _TWO_BYTES:
        length = 2 if size == _TWO_BYTES else 8
        size = int.from_bytes(data[start : start + length], "big")
        start += length
    if data[position + 1] & _MASKED:
        start += 4
    return (start, size) if start <= len(data) else None


def _header(first: int, size: int, masked: int) -> bytes:
    if size < _TWO_BYTES:
        return bytes((first, masked | size))
    if size < 65536:
        return bytes((first, masked | _TWO_BYTES)) + size.to_bytes(2, "big")
    return bytes((first, masked | _TWO_BYTES + 1)) + size.to_bytes(8, "big")
