"""A request to a sandbox's daemon, over a connection of its own.

One connection to a daemon carries one request: a sandbox whose daemon has been taken over cannot answer another request
than the one it was asked, and no request is ever sent twice.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

import h11

from .errors import ApiError
from .limits import CONNECT_TIMEOUT, MAX_HEAD, PORT_PATIENCE
from .relay import WEBSOCKET, Relay
from .streams import Stream

if TYPE_CHECKING:
    from sandbox_aio.runtimes.base import DaemonAddress

    from .exchange import Exchange, Headers
    from .relay import Policy
    from .splice import Splice

__all__ = ["RESPONSE_HEADERS", "DataPlanePolicy", "FindDaemon", "connect_port", "forward", "only"]

FindDaemon = Callable[[str], "Coroutine[Any, Any, tuple[str, DaemonAddress]]"]
"""From a sandbox's name or id to its id and its daemon, which runs; raises ApiError."""

KIND: Final = re.compile(r"[A-Za-z]{1,64}")
MAX_MESSAGE: Final = 1024
"""Characters of a daemon's error message that are passed on."""

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


class DataPlanePolicy:
    """What crosses between a client of the data plane and a daemon: what is listed, and nothing else."""

    peer: str = "the sandbox"
    transparent: bool = False

    def request_trailers(self, trailers: Headers) -> Headers:
        return ()

    def answer(self, status: int, headers: Headers) -> Headers:
        passed = only(RESPONSE_HEADERS, headers)
        return passed if status == 101 else [*passed, (b"x-content-type-options", b"nosniff")]

    def interim(self, headers: Headers) -> Headers:
        return ()

    def answer_trailers(self, trailers: Headers) -> Headers:
        return ()


async def forward(
    exchange: Exchange,
    address: DaemonAddress,
    target: bytes,
    *,
    on_splice_gone: Callable[[Splice], None],
    policy: Policy | None = None,
) -> Splice | None:
    """Have the daemon answer the exchange at another target. Return the splice if it changed to websocket.

    Raises ApiError 502 when the daemon does not answer as it must. When the exchange ends early, be it by cancellation,
    the daemon sees its connection closed.
    """
    head = exchange.head
    websocket = head.wants_websocket and head.method == b"GET" and not head.has_body
    headers = [(b"host", b"sandbox"), (b"x-sandbox-secret", address.secret.encode())]
    headers += WEBSOCKET if websocket else [(b"connection", b"close")]
    headers += only(REQUEST_HEADERS, head.headers)
    daemon = await connect(address)
    spliced = None
    try:
        relay = Relay(exchange, daemon, policy or DataPlanePolicy(), on_splice_gone)
        spliced = await relay.run(h11.Request(method=head.method, target=target, headers=headers))
        return spliced
    finally:
        if spliced is None:
            daemon.abort()


async def connect_port(address: DaemonAddress, port: int) -> tuple[Stream, bytes]:
    """Have the daemon connect us to a port of its sandbox; return the connection, and what came on it at once.

    A port that refuses is tried again for `PORT_PATIENCE` seconds. Raises ApiError 502 with the daemon's word on it.
    """
    stream = await connect(address)
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    request = h11.Request(
        method="GET",
        target=f"/connect?port={port}&patience={PORT_PATIENCE}",
        headers=[
            ("host", "sandbox"),
            ("x-sandbox-secret", address.secret),
            ("connection", "Upgrade"),
            ("upgrade", "tcp"),
        ],
    )
    try:
        stream.write((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
        async with asyncio.timeout(PORT_PATIENCE + CONNECT_TIMEOUT):
            body = b""
            while not isinstance(event := connection.next_event(), h11.EndOfMessage | h11.ConnectionClosed):
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive())
                elif isinstance(event, h11.InformationalResponse) and event.status_code == 101:
                    return stream, connection.trailing_data[0]
                elif isinstance(event, h11.Data):
                    body = (body + event.data)[:MAX_HEAD]
        raise ApiError(502, *_refusal(body))
    except (h11.ProtocolError, TimeoutError) as error:
        stream.abort()
        raise ApiError(502, "ConnectionError", f"the sandbox did not connect to its port {port}") from error
    except BaseException:
        stream.abort()
        raise


def _refusal(body: bytes) -> tuple[str, str]:
    """The kind and the message of a daemon's error, which is not trusted to be one."""
    try:
        detail = json.loads(body)["detail"]
        kind, message = str(detail["error"]), str(detail["message"])[:MAX_MESSAGE]
        return kind if KIND.fullmatch(kind) else "ConnectionError", "".join(filter(str.isprintable, message))
    except (ValueError, LookupError, TypeError):
        return "ConnectionError", "the sandbox refused the connection to its port"


async def connect(address: DaemonAddress) -> Stream:
    """A connection to a daemon. Raises ApiError 502."""
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


def only(allowed: frozenset[bytes], headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers that are listed."""
    return [(name, value) for name, value in headers if name in allowed]
