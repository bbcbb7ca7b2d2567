"""One websocket connection (RFC 6455), either role, on wsproto, with what wsproto lacks.

wsproto does the handshake, the masking, control frames and fragments. Around it stands a reader of frame headers
which bounds the size of a message before it is buffered, hands whole unmasked text messages over without further work
(nearly all of what a client receives), joins fragments, and makes the first violation final: afterwards nothing is
read any more.

A driver calls `receive_bytes` or `receive_eof`, then sends what `bytes_to_send` returns, then looks at `events`; once
`finished` is true it closes the transport. No frame is half a message: an item of `events` that is `bytes` is one
whole text or binary message.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError as WSLocalError
from wsproto.utilities import RemoteProtocolError as WSRemoteError

from ..errors import LocalProtocolError
from .states import WEBSOCKET_TRANSITIONS, WebSocketInput, WebSocketState, step

__all__ = ["Closed", "Opened", "Refused", "WebSocket", "WebSocketEvent", "WebSocketLimits"]

Headers = Sequence[tuple[bytes, bytes]]


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
class Refused:
    """The peer answered the upgrade with something else than 101."""

    status: int
    headers: Headers
    body: bytes


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


WebSocketEvent = bytes | Opened | Refused | Closed

_TEXT_FINAL = 0x81
_SMALL = 4096


class WebSocket:
    """The state of one connection. Make it with `connect` (client) or `accept` (server)."""

    def __init__(self, *, client: bool, limits: WebSocketLimits) -> None:
        self.state = WebSocketState.CONNECTING
        self._client = client
        self._limits = limits
        self._handshake: WSConnection | None = None
        self._frames: Connection | None = None
        self._out: list[bytes] = []
        self._events: list[WebSocketEvent] = []
        self._head = b""
        self._refusal: Refused | None = None
        self._tail = b""
        self._parts: list[bytes] = []
        self._needed = 0
        self._fragments: list[str | bytes] = []
        self._fragments_bytes = 0
        self._heard_at: float | None = None
        self._ping_sent_at: float | None = None
        self._close_sent_at: float | None = None
        self._reading = True

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
        """
        websocket = cls(client=True, limits=limits or WebSocketLimits())
        websocket._handshake = WSConnection(ConnectionType.CLIENT)
        try:
            request = websocket._handshake.send(Request(host=host, target=target, extra_headers=list(headers)))
        except WSLocalError as exc:
            raise LocalProtocolError(f"the upgrade request cannot be made: {exc}") from None
        websocket._out.append(request)
        return websocket

    @classmethod
    def accept(
        cls, *, target: str, headers: Headers, limits: WebSocketLimits | None = None, trailing: bytes = b""
    ) -> WebSocket:
        """Begin the server's side from a request whose head was read by somebody else: the 101 is queued.

        Args:
            trailing: bytes of the connection that came behind the head.

        Raises:
            LocalProtocolError: the request is no valid upgrade to a websocket; answer it with 400.
        """
        websocket = cls(client=False, limits=limits or WebSocketLimits())
        handshake = WSConnection(ConnectionType.SERVER)
        try:
            handshake.initiate_upgrade_connection(list(headers), target)
            websocket._out.append(handshake.send(AcceptConnection()))
        except (WSRemoteError, WSLocalError) as exc:
            raise LocalProtocolError(f"the request is no upgrade to a websocket: {exc}") from None
        websocket._step(WebSocketInput.ACCEPT)
        websocket._frames = Connection(ConnectionType.SERVER)
        if trailing:
            websocket._read_frames(trailing)
        return websocket

    # --- the five verbs ----------------------------------------------------------------------------------------------

    def receive_bytes(self, data: bytes, now: float) -> None:
        """Feed what the transport delivered. Then call `bytes_to_send` and `events`."""
        if self.finished or not data:
            return
        self._heard_at = now
        self._ping_sent_at = None
        if self.state is WebSocketState.CONNECTING:
            self._read_handshake(data)
        else:
            self._read_frames(data)

    def receive_eof(self, now: float) -> None:
        """The peer ended its direction, or the connection broke."""
        if self.finished:
            return
        if self._refusal is not None:
            self._refuse()
            return
        connecting = self.state is WebSocketState.CONNECTING
        self._step(WebSocketInput.EOF)
        where = "during the upgrade" if connecting else "without a close frame"
        self._events.append(Closed(code=1006, reason=f"the connection ended {where}"))

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
        size = len(payload)
        if size < 126:
            self._out.append(bytes((_TEXT_FINAL, size)))
        elif size < 65536:
            self._out.append(b"\x81\x7e" + size.to_bytes(2, "big"))
        else:
            self._out.append(b"\x81\x7f" + size.to_bytes(8, "big"))
        self._out.append(payload)

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

    def pause_reading(self) -> None:
        """Say that the driver does not read for now: silence proves nothing until `resume_reading`."""
        self._reading = False

    def resume_reading(self, now: float) -> None:
        """Say that the driver reads again."""
        self._reading = True
        self._heard_at = now
        self._ping_sent_at = None

    def deadline(self) -> float | None:
        """When `receive_timeout` has something to do; None if it has nothing."""
        if self.state is WebSocketState.CLOSING and self._close_sent_at is not None:
            return self._close_sent_at + self._limits.close_timeout
        interval = self._limits.ping_interval
        if self.state is not WebSocketState.OPEN or interval is None or self._heard_at is None or not self._reading:
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
            self._step(WebSocketInput.EOF)
            self._events.append(Closed(code=1006, reason="the peer did not answer the close frame"))
        elif self._ping_sent_at is None:
            assert self._frames is not None
            self._out.append(self._frames.send(Ping()))
            self._ping_sent_at = now
        else:
            self._step(WebSocketInput.FAIL)
            waited = self._limits.ping_timeout
            self._events.append(Closed(code=1006, reason=f"the peer answered no ping for {waited:g} s", silent=True))

    # --- the handshake -----------------------------------------------------------------------------------------------

    def _read_handshake(self, data: bytes) -> None:
        if self._refusal is not None:
            self._read_refusal(data)
            return
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0 or end + 4 > self._limits.max_head_bytes:
            if len(self._head) > self._limits.max_head_bytes:
                self._fail(1002, "the response to the upgrade has an oversized head")
            elif not b"HTTP/".startswith(self._head[:5]) and not self._head.startswith(b"HTTP/"):
                self._fail(1002, "the response to the upgrade is not HTTP")
            return
        head, rest = self._head[: end + 4], self._head[end + 4 :]
        self._head = b""
        assert self._handshake is not None
        try:
            self._handshake.receive_data(head)
            event = next(iter(self._handshake.events()), None)
        except WSRemoteError as exc:
            self._fail(1002, f"the response to the upgrade is invalid: {exc}")
            return
        if isinstance(event, AcceptConnection):
            self._handshake = None
            self._frames = Connection(ConnectionType.CLIENT)
            self._step(WebSocketInput.ACCEPT)
            self._events.append(Opened())
            if rest:
                self._read_frames(rest)
        elif isinstance(event, RejectConnection):
            self._refusal = Refused(status=event.status_code, headers=list(event.headers), body=b"")
            if event.has_body:
                self._read_refusal(rest)
            else:
                self._refuse()
        else:
            self._fail(1002, "the response to the upgrade is invalid")

    def _read_refusal(self, data: bytes) -> None:
        assert self._handshake is not None and self._refusal is not None
        body, finished = self._refusal.body, False
        try:
            self._handshake.receive_data(data)
            for event in self._handshake.events():
                if isinstance(event, RejectData):
                    body += event.data
                    finished = finished or event.body_finished
        except WSRemoteError:
            finished = True
        limit = self._limits.max_refusal_bytes
        self._refusal = attrs.evolve(self._refusal, body=body[:limit])
        if finished or len(body) >= limit:
            self._refuse()

    def _refuse(self) -> None:
        assert self._refusal is not None
        self._step(WebSocketInput.FAIL)
        self._events.append(self._refusal)

    # --- frames ------------------------------------------------------------------------------------------------------

    def _read_frames(self, data: bytes) -> None:  # noqa: C901 - the hot loop: one call per transport read
        """Walk over the frames in `data`; keep what is not whole yet."""
        if self._needed:
            self._parts.append(data)
            if len(data) < self._needed:
                self._needed -= len(data)
                return
            data = b"".join(self._parts)
            self._parts = []
            self._needed = 0
        elif self._tail:
            data = self._tail + data
            self._tail = b""
        events = self._events
        total = len(data)
        position = 0
        while total - position >= 2:
            masked = data[position + 1] & 0x80
            size = data[position + 1] & 0x7F
            start = position + 2
            if size == 126:
                start += 2
                size = int.from_bytes(data[position + 2 : start], "big")
            elif size == 127:
                start += 8
                size = int.from_bytes(data[position + 2 : start], "big")
            if masked:
                start += 4
            if total < start:
                break
            if size > self._limits.max_message_bytes - self._fragments_bytes:
                self._fail(1009, f"a message is over {self._limits.max_message_bytes} bytes")
                return
            end = start + size
            if end > total:
                if end - position > _SMALL:
                    self._parts = [data[position:]]
                    self._needed = end - total
                    return
                break
            if data[position] == _TEXT_FINAL and not masked and self._client and not self._fragments:
                events.append(data[start:end])
            else:
                self._read_slowly(data[position:end])
                if self.finished:
                    return
            position = end
        self._tail = data[position:] if position else data

    def _read_slowly(self, frame: bytes) -> None:
        """Give one whole frame to wsproto: control frames, fragments, masked, binary and invalid ones."""
        assert self._frames is not None
        try:
            self._frames.receive_data(frame)
            for event in self._frames.events():
                self._handle(event)
        except WSRemoteError as exc:
            self._fail(1002, str(exc) or "a frame is invalid")

    def _handle(self, event: object) -> None:
        assert self._frames is not None
        if isinstance(event, TextMessage | BytesMessage):
            data = event.data if isinstance(event, TextMessage) else bytes(event.data)
            self._fragments.append(data)
            self._fragments_bytes += len(data.encode()) if isinstance(data, str) else len(data)
            if event.message_finished:
                parts, self._fragments, self._fragments_bytes = self._fragments, [], 0
                self._events.append(b"".join(p.encode() if isinstance(p, str) else p for p in parts))
        elif isinstance(event, Ping):
            if self.state is WebSocketState.OPEN:
                self._out.append(self._frames.send(event.response()))
        elif isinstance(event, CloseConnection):
            self._receive_close(event)
        else:
            assert isinstance(event, Pong)

    def _receive_close(self, event: CloseConnection) -> None:
        assert self._frames is not None
        if self._frames.state.name == "OPEN":  # wsproto emits this for what it could not parse, too
            self._fail(int(event.code), event.reason or "a frame is invalid")
            return
        if self.state is WebSocketState.OPEN:
            self._out.append(self._frames.send(event.response()))
        self._step(WebSocketInput.PEER_CLOSE)
        self._events.append(Closed(code=int(event.code), reason=event.reason or ""))

    def _fail(self, code: int, reason: str) -> None:
        if self.state is WebSocketState.OPEN:
            assert self._frames is not None
            self._out.append(self._frames.send(CloseConnection(code=code, reason=reason[:100])))
        self._step(WebSocketInput.FAIL)
        self._tail, self._parts, self._fragments = b"", [], []
        self._events.append(Closed(code=code, reason=reason, violation=True))

    def _step(self, input: WebSocketInput) -> None:
        self.state = step(WEBSOCKET_TRANSITIONS, self.state, input)
