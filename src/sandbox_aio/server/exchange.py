"""One HTTP request and its answer, on a public connection."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import attrs
import h11

from .errors import ApiError
from .hosts import Host

if TYPE_CHECKING:
    from .streams import Stream

__all__ = ["Exchange", "Head", "Headers"]

Headers = Iterable[tuple[bytes, bytes]]

ABSOLUTE: Final = re.compile(rb"(https?)://([^/?#]*)", re.IGNORECASE)


@attrs.frozen(kw_only=True)
class Head:
    """A request head whose framing h11 has checked. Header names are lower case."""

    method: bytes
    path: bytes
    """Not decoded: `%2F` inside a segment is not a separator (wire protocol, section 1.4)."""
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    host: Host
    """By which name the client reaches us; the target, where it names one, names the same."""
    version: bytes = b"1.1"

    @classmethod
    def of(cls, request: h11.Request) -> Head:
        """Raises ApiError for what h11 lets through and no client of ours sends."""
        headers = tuple(request.headers)
        names = [name for name, _ in headers]
        if request.http_version not in (b"1.0", b"1.1"):
            raise ApiError(505, "InvalidRequest", "this server speaks HTTP/1.1")
        if b"host" not in names:
            raise ApiError(400, "InvalidRequest", "a request names its Host")
        if b"transfer-encoding" in names and (b"content-length" in names or request.http_version < b"1.1"):
            raise ApiError(400, "InvalidRequest", "a request is framed by Content-Length or by chunks, not by both")
        host = Host.parse(next(value for name, value in headers if name == b"host"))
        target = request.target
        if (absolute := ABSOLUTE.match(target)) is not None:
            scheme = absolute[1].lower().decode()
            if Host.parse(absolute[2]).origin(scheme) != host.origin(scheme):
                raise ApiError(400, "InvalidRequest", "the request target and the Host header name different hosts")
            target = target[absolute.end() :]
            target = target if target.startswith(b"/") else b"/" + target
        path, _, query = target.partition(b"?")
        if not path.startswith(b"/") or b"#" in target or request.method == b"CONNECT":
            raise ApiError(400, "InvalidRequest", "the request target is not a path")
        return cls(
            method=request.method, path=path, query=query, headers=headers, host=host, version=request.http_version
        )

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, by its lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    def values(self, name: bytes) -> list[bytes]:
        """Every value of a header, by its lower-case name."""
        return [value for key, value in self.headers if key == name]

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
        self.request_trailers: tuple[tuple[bytes, bytes], ...] = ()
        """What followed the request's last chunk, once it has been received."""
        self._chunked = False
        self._connection = connection
        if not head.has_body:
            connection.next_event()  # The end of the request, which is already known.

    @property
    def request_complete(self) -> bool:
        """Whether all of the request's body has been received."""
        return self._connection.their_state is not h11.SEND_BODY

    @property
    def awaits_continue(self) -> bool:
        """Whether the client sends no body before it is asked to (`Expect: 100-continue`)."""
        return self._connection.they_are_waiting_for_100_continue

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
            elif isinstance(event, h11.EndOfMessage):
                self.request_trailers = tuple(event.headers)
        return None

    async def inform(self, status: int, headers: Headers) -> None:
        """Send an interim answer, which HTTP/1.0 does not know."""
        if self.head.version != b"1.0" and not self.answered:
            event = h11.InformationalResponse(status_code=status, headers=list(headers))
            await self.stream.send(self._connection.send(event) or b"")

    async def send_head(self, status: int, headers: Headers) -> None:
        """Start the answer. Its body's framing follows from the headers: `content-length`, or else chunks."""
        self.answered = True
        fields = list(headers)
        if not self.request_complete:
            fields.append((b"connection", b"close"))  # What is left of the request is not read.
        self._chunked = (
            self.head.version != b"1.0"
            and self.head.method != b"HEAD"
            and status not in (204, 304)
            and all(name != b"content-length" for name, _ in fields)
        )
        event = h11.Response(status_code=status, headers=fields)
        await self.stream.send(self._connection.send(event) or b"")

    async def send_body(self, data: bytes) -> None:
        """Send a piece of the body, waiting while the client is slow."""
        pieces = self._connection.send_with_data_passthrough(h11.Data(data=data))
        await self.stream.send(*(pieces or ()))

    async def finish(self, trailers: Headers = ()) -> None:
        """End the answer. Trailers are left out where its framing has no place for them."""
        event = h11.EndOfMessage(headers=list(trailers) if self._chunked else [])
        await self.stream.send(self._connection.send(event) or b"")

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
