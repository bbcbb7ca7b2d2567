"""One HTTP request and its answer, on a public connection."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import attrs
import h11

from .errors import ApiError

if TYPE_CHECKING:
    from .streams import Stream

__all__ = ["Exchange", "Head", "Headers"]

Headers = Iterable[tuple[bytes, bytes]]


@attrs.frozen(kw_only=True)
class Head:
    """A request head whose framing h11 has checked. Header names are lower case."""

    method: bytes
    path: bytes
    """Not decoded: `%2F` inside a segment is not a separator (wire protocol, section 1.4)."""
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    @classmethod
    def of(cls, request: h11.Request) -> Head:
        """Raises ApiError for what h11 lets through and no client of ours sends."""
        headers = tuple(request.headers)
        names = [name for name, _ in headers]
        if b"transfer-encoding" in names and (b"content-length" in names or request.http_version < b"1.1"):
            raise ApiError(400, "InvalidRequest", "a request is framed by Content-Length or by chunks, not by both")
        target = request.target
        for scheme in (b"http://", b"https://"):
            if target.lower().startswith(scheme):
                _, slash, rest = target[len(scheme) :].partition(b"/")
                target = slash + rest or b"/"
        path, _, query = target.partition(b"?")
        if not path.startswith(b"/"):
            raise ApiError(400, "InvalidRequest", "the request target is not a path")
        return cls(method=request.method, path=path, query=query, headers=headers)

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, by its lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def has_body(self) -> bool:
        """Whether a body follows, be it in chunks that turn out to be none."""
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0") != b"")
            for name, value in self.headers
        )

    @property
    def wants_websocket(self) -> bool:
        """Whether this asks to change to websocket."""
        connection = self.header(b"connection") or b""
        return (self.header(b"upgrade") or b"").strip().lower() == b"websocket" and b"upgrade" in [
            option.strip() for option in connection.lower().split(b",")
        ]


class Exchange:
    """Receives one request's body and sends its answer.

    Every method raises `h11.RemoteProtocolError` when the client breaks the framing. When the client goes away, the
    task that handles the exchange is cancelled.
    """

    def __init__(self, connection: h11.Connection, stream: Stream, head: Head, *, scheme: str) -> None:
        self.head = head
        self.scheme = scheme
        self.stream = stream
        self.answered: bool = False
        """Whether the head of the answer is on its way."""
        self.upgraded: bool = False
        """Whether the connection is no longer HTTP and no longer ours."""
        self._connection = connection
        if not head.has_body:
            connection.next_event()  # The end of the request, which is already known.

    @property
    def request_complete(self) -> bool:
        """Whether all of the request's body has been received."""
        return self._connection.their_state is not h11.SEND_BODY

    async def receive_body(self) -> bytes | None:
        """The next piece of the body, None after the last. Asks a client that waits with `Expect` to go on."""
        connection = self._connection
        while not self.request_complete:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue and not self.answered:
                    self.stream.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
                connection.receive_data(await self.stream.receive())
            elif isinstance(event, h11.Data):
                return event.data
        return None

    async def send_head(self, status: int, headers: Headers) -> None:
        """Start the answer. Its body's framing follows from the headers: `content-length`, or else chunks."""
        self.answered = True
        fields = list(headers)
        if not self.request_complete:
            fields.append((b"connection", b"close"))  # What is left of the request is not read.
        event = h11.Response(status_code=status, headers=fields)
        await self.stream.send(self._connection.send(event) or b"")

    async def send_body(self, data: bytes) -> None:
        """Send a piece of the body, waiting while the client is slow."""
        pieces = self._connection.send_with_data_passthrough(h11.Data(data=data))
        await self.stream.send(*(pieces or ()))

    async def finish(self) -> None:
        """End the answer."""
        await self.stream.send(self._connection.send(h11.EndOfMessage()) or b"")

    async def respond(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Send a whole answer with one write."""
        self.answered = True
        fields = list(headers)
        if not self.request_complete:
            fields.append((b"connection", b"close"))
        connection = self._connection
        head = connection.send(h11.Response(status_code=status, headers=fields)) or b""
        data = connection.send(h11.Data(data=body)) or b"" if self.head.method != b"HEAD" else b""
        await self.stream.send(head + data + (connection.send(h11.EndOfMessage()) or b""))

    def upgrade(self, headers: Headers) -> bytes:
        """Send 101 and give the connection away; return what the client sent after its head."""
        self.answered = self.upgraded = True
        event = h11.InformationalResponse(status_code=101, headers=list(headers))
        self.stream.write(self._connection.send(event) or b"")
        return self._connection.trailing_data[0]
