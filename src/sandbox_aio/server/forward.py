"""A request to a sandbox's daemon, over a connection of its own.

One connection to a daemon carries one request: a sandbox whose daemon has been taken over cannot answer another request
than the one it was asked, and no request is ever sent twice.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, Final

import h11

from .errors import ApiError
from .limits import CONNECT_TIMEOUT, MAX_HEAD
from .splice import Splice
from .streams import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox_aio.runtimes.base import DaemonAddress

    from .exchange import Exchange, Headers

__all__ = ["forward"]

REQUEST_HEADERS: Final = frozenset(
    (
        b"accept",
        b"content-length",
        b"content-type",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"range",
        b"sec-websocket-key",
        b"sec-websocket-protocol",
        b"sec-websocket-version",
        b"transfer-encoding",
        b"user-agent",
    )
)
"""What a daemon is told. Everything else stays here: credentials of any kind, cookies, hop-by-hop headers."""

RESPONSE_HEADERS: Final = frozenset(
    (
        b"accept-ranges",
        b"cache-control",
        b"content-disposition",
        b"content-length",
        b"content-range",
        b"content-type",
        b"etag",
        b"last-modified",
        b"retry-after",
        b"sec-websocket-accept",
        b"sec-websocket-protocol",
    )
)
"""What a client is told by a daemon, which is not trusted: no cookies, no policies; and chunks are ours to say."""

WEBSOCKET: Final = ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"))


async def forward(
    exchange: Exchange, address: DaemonAddress, path: bytes, *, on_splice_gone: Callable[[Splice], None]
) -> Splice | None:
    """Have the daemon answer the exchange, bodies streamed both ways. Return the splice if it changed to websocket.

    Raises ApiError 502 when the daemon does not answer as it must. When the exchange ends early, be it by cancellation,
    the daemon sees its connection closed.
    """
    daemon = await _connect(address)
    spliced = None
    try:
        spliced = await _Forwarding(exchange, daemon, on_splice_gone).run(address.secret, path)
        return spliced
    finally:
        if spliced is None:
            daemon.abort()


async def _connect(address: DaemonAddress) -> Stream:
    loop = asyncio.get_running_loop()
    try:
        if address.path is not None:
            _, stream = await loop.create_unix_connection(Stream, sock=await _connect_unix(address.path))
        else:
            assert address.host is not None and address.port is not None
            _, stream = await loop.create_connection(Stream, address.host, address.port)
    except OSError as error:
        reason = error.strerror or "it is too busy"
        raise ApiError(502, "ConnectionError", f"the sandbox does not accept connections: {reason}") from error
    return stream


async def _connect_unix(path: str) -> socket.socket:
    """A connected socket. Raises OSError; TimeoutError when the daemon's backlog stays full.

    With a full backlog a non-blocking connect fails with EAGAIN, and nothing tells when to try again. (`asyncio` takes
    it for a connect under way, and then for an established one.)
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            while True:
                try:
                    connection.connect(path)
                    return connection
                except BlockingIOError:
                    await asyncio.sleep(0.002)
    except BaseException:
        connection.close()
        raise


class _Forwarding:
    def __init__(self, exchange: Exchange, daemon: Stream, on_splice_gone: Callable[[Splice], None]) -> None:
        self._exchange = exchange
        self._daemon = daemon
        self._on_splice_gone = on_splice_gone
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)

    async def run(self, secret: str, path: bytes) -> Splice | None:
        exchange = self._exchange
        websocket = exchange.head.wants_websocket and exchange.head.method == b"GET" and not exchange.head.has_body
        await self._send_request(secret, path, websocket=websocket)
        if exchange.request_complete:
            return await self._relay_answer()
        upload = asyncio.create_task(self._relay_body())
        answer = asyncio.create_task(self._relay_answer())
        try:
            # The answer may come before the end of the body, which is then not read on; a broken body ends both.
            await asyncio.wait((upload, answer), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                upload.result()
            return await answer
        finally:
            await _cancel(upload, answer)

    async def _send_request(self, secret: str, path: bytes, *, websocket: bool) -> None:
        head = self._exchange.head
        headers = [(b"host", b"sandbox"), (b"x-sandbox-secret", secret.encode())]
        headers += WEBSOCKET if websocket else [(b"connection", b"close")]
        headers += _only(REQUEST_HEADERS, head.headers)
        target = path + b"?" + head.query if head.query else path
        request = h11.Request(method=head.method, target=target, headers=headers)
        data = self._h11.send(request) or b""
        if self._exchange.request_complete:
            data += self._h11.send(h11.EndOfMessage()) or b""
        self._daemon.write(data)

    async def _relay_body(self) -> None:
        """Client to daemon. A daemon that has stopped reading may have answered already: that is not an error here."""
        while (data := await self._exchange.receive_body()) is not None:
            try:
                await self._daemon.send(*(self._h11.send_with_data_passthrough(h11.Data(data=data)) or ()))
            except ConnectionError:
                return
        self._daemon.write(self._h11.send(h11.EndOfMessage()) or b"")

    async def _relay_answer(self) -> Splice | None:
        """Daemon to client."""
        exchange = self._exchange
        try:
            response = await self._next_event()
            while isinstance(response, h11.InformationalResponse):
                if response.status_code == 101:
                    return self._splice(response)
                response = await self._next_event()
        except h11.ProtocolError as error:
            raise ApiError(502, "ConnectionError", f"the sandbox did not answer: {error}") from error
        if not isinstance(response, h11.Response):
            raise ApiError(502, "ConnectionError", "the sandbox closed the connection instead of answering")
        names = {name for name, _ in response.headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            raise ApiError(502, "ConnectionError", "the sandbox framed its answer in two ways")
        headers = _only(RESPONSE_HEADERS, response.headers)
        await exchange.send_head(response.status_code, [*headers, (b"x-content-type-options", b"nosniff")])
        try:
            while isinstance(event := await self._next_event(), h11.Data):
                await exchange.send_body(event.data)
        except h11.RemoteProtocolError as error:
            # Too late for another answer: all that is left is not to end this one as if it were whole.
            raise ConnectionAbortedError(f"the sandbox broke off its answer: {error}") from error
        await exchange.finish()
        return None

    async def _next_event(self) -> object:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            self._h11.receive_data(await self._daemon.receive())
        return event

    def _splice(self, response: h11.InformationalResponse) -> Splice:
        headers = [*WEBSOCKET, *_only(RESPONSE_HEADERS, response.headers)]
        from_client = self._exchange.upgrade(headers)
        return Splice(
            self._exchange.stream,
            self._daemon,
            from_client=from_client,
            from_daemon=self._h11.trailing_data[0],
            on_gone=self._on_splice_gone,
        )


def _only(allowed: frozenset[bytes], headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name in allowed]


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for their end; an error of one that was not awaited is a consequence of another's."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()
