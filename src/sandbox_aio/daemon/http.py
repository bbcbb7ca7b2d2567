"""HTTP/1.1 for the daemon, on h11: one task for each connection, which serves its requests one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qsl, unquote

import h11

from ..errors import LocalProtocolError
from ..protocol.websocket import WebSocket, WebSocketLimits
from .faults import Fault

if TYPE_CHECKING:
    from .settings import DaemonSettings

__all__ = ["Exchange", "Handler", "HttpConnection", "RawUpgrade", "Upgrade"]

_logger = logging.getLogger("sandbox_aio.daemon")

_READ_AHEAD_BYTES = 64 * 1024
"""Bytes of a connection that wait for a handler before reading stops."""
_WRITE_BYTES = 256 * 1024
"""Bytes of a response that the transport holds before `write` waits."""
_DISCARD_BYTES = 1 << 20
"""Bytes of a body that nobody wants which are read so that the connection can be used again."""
_LINGER_SECONDS = 2.0
"""How long a client that is still sending is listened to after the response, so that it reads the response."""
_SECRET = b"x-sandbox-secret"


class Exchange:
    """One request and its response. Headers are `bytes`, their names in lower case."""

    def __init__(self, connection: HttpConnection, request: h11.Request) -> None:
        path, _, query = request.target.decode("ascii").partition("?")
        self.method: str = request.method.decode("ascii")
        self.path: str = unquote(path)
        self.query: dict[str, str] = dict(parse_qsl(query, keep_blank_values=True, errors="surrogateescape"))
        self.headers: dict[bytes, bytes] = {}
        for name, value in request.headers:
            self.headers.setdefault(name, value)
        self.responded: bool = False
        self._connection = connection

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the body in pieces, as they come; the client is read no faster than they are taken."""
        async for data in self._connection.read_body():
            yield data

    async def json(self, limit: int) -> dict[str, Any]:
        """Return the body, which must be a JSON object of `limit` bytes at most.

        Raises:
            Fault: it is not.
        """
        body = bytearray()
        async for data in self.body():
            body += data
            if len(body) > limit:
                raise Fault(413, "RequestTooLarge", f"the body of this request is limited to {limit} bytes")
        try:
            value = json.loads(bytes(body))
        except (ValueError, RecursionError):
            raise Fault(400, "InvalidRequest", "the body is not JSON") from None
        if not isinstance(value, dict):
            raise Fault(400, "InvalidRequest", "the body is not a JSON object")
        return value

    async def reply(self, status: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole response in JSON."""
        data = json.dumps(value).encode()
        own = {"content-type": "application/json", "content-length": str(len(data))}
        await self.start(status, {**(headers or {}), **own})
        await self.write(data)
        await self.end()

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the head of the response."""
        self.responded = True
        await self._connection.send(h11.Response(status_code=status, headers=list(headers.items())))

    async def write(self, data: bytes) -> None:
        """Send a piece of the body, and wait until the client has taken most of what came before. Nothing for HEAD."""
        if self.method != "HEAD" and data:
            await self._connection.send(h11.Data(data=data))

    async def end(self) -> None:
        """End the response."""
        await self._connection.send(h11.EndOfMessage())


Handler: TypeAlias = Callable[[Exchange], Awaitable[None]]
"""Serves one request. A `Fault` that it raises becomes the response; when the client goes away it is cancelled."""

Upgrade: TypeAlias = Callable[[WebSocket], asyncio.Protocol]
"""Takes over the connection of a websocket."""

RawUpgrade: TypeAlias = Callable[[Mapping[str, str]], Awaitable[asyncio.Protocol]]
"""Takes over a connection as it is, by its request's query. May raise `Fault`; cancelled if the client goes."""


class HttpConnection(asyncio.Protocol):
    """One connection. Only requests that bear the secret reach a handler or the upgrade."""

    def __init__(
        self,
        settings: DaemonSettings,
        handlers: Mapping[str, Mapping[str, Handler]],
        upgrades: Mapping[str, Upgrade],
        raw_upgrades: Mapping[str, RawUpgrade],
        connections: MutableMapping[asyncio.BaseTransport, asyncio.Protocol],
    ) -> None:
        """`handlers` are by path and method, upgrades by path; `connections` are those of the daemon that are open."""
        self._settings = settings
        self._handlers = handlers
        self._upgrades = upgrades
        self._raw_upgrades = raw_upgrades
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=settings.limits.head_bytes)
        self._transport: asyncio.Transport
        self._task: asyncio.Task[None] | None = None
        self._ahead = 0
        self._discarding = False
        self._unasked = False  # whether the client waits for a sign to send its body
        self._more = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()

    # --- called by the transport --------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve, unless there are too many connections."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if len(self._connections) >= self._settings.limits.connections:
            transport.abort()
            return
        transport.set_write_buffer_limits(high=_WRITE_BYTES)
        self._connections[transport] = self
        self._task = self._loop.create_task(self._serve(), name="http connection")

    def data_received(self, data: bytes) -> None:
        """Keep what came for the task."""
        if self._discarding:
            return
        self._ahead += len(data)
        if self._ahead > _READ_AHEAD_BYTES:
            self._transport.pause_reading()
        with contextlib.suppress(h11.RemoteProtocolError):  # the task meets the error in its turn
            self._h11.receive_data(data)
        self._more.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop serving: the client has gone, and waits for nothing."""
        self._connections.pop(self._transport, None)
        if self._task is not None:
            self._task.cancel()
            self._drained.set()

    def pause_writing(self) -> None:
        """The client is slower than the response."""
        self._drained.clear()

    def resume_writing(self) -> None:
        """Go on."""
        self._drained.set()

    # --- called by exchanges --------------------

    async def send(self, event: h11.Event) -> None:
        """Send a part of a response, and wait until the transport takes more."""
        data = self._h11.send(event)
        if data:
            self._transport.write(data)
            await self._drained.wait()

    async def read_body(self) -> AsyncIterator[bytes]:
        """Yield the rest of the body of the request that is being served."""
        if self._unasked:
            self._unasked = False
            await self.send(h11.InformationalResponse(status_code=100, headers=[]))
        while self._h11.their_state is h11.SEND_BODY:
            event = await self._next_event()
            if isinstance(event, h11.Data):
                yield bytes(event.data)

    # --- the task --------------------

    async def _serve(self) -> None:
        try:
            while (request := await self._next_request()) is not None:
                exchange = Exchange(self, request)
                try:
                    self._authenticate(exchange)
                    if exchange.path in self._upgrades:
                        await self._upgrade(request, self._upgrades[exchange.path])
                        return
                    if exchange.path in self._raw_upgrades:
                        await self._upgrade_raw(exchange, self._raw_upgrades[exchange.path])
                        return
                    await self._find(exchange)(exchange)
                except Fault as fault:
                    await self._reply_fault(exchange, fault)
                if not await self._is_reusable():
                    break
                self._h11.start_next_cycle()
        except h11.RemoteProtocolError as exc:
            await self._refuse(exc)
        except Exception:
            _logger.exception("a request failed")
            await self._refuse(None)
        self._transport.close()

    async def _next_event(self) -> h11.Event | type[h11.PAUSED]:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            self._ahead = 0
            self._more.clear()
            self._transport.resume_reading()
            await self._more.wait()
        return event  # type: ignore[return-value]

    async def _next_request(self) -> h11.Request | None:
        """Return the next request; None if the client is done, or silent for too long."""
        try:
            async with asyncio.timeout(self._settings.limits.idle_seconds):
                event = await self._next_event()
        except TimeoutError:
            return None
        self._unasked = self._h11.they_are_waiting_for_100_continue
        return event if isinstance(event, h11.Request) else None

    def _authenticate(self, exchange: Exchange) -> None:
        secret = exchange.headers.get(_SECRET, b"")
        if not hmac.compare_digest(secret, self._settings.secret.encode()):
            raise Fault(401, "Unauthorized", "this request does not bear the sandbox's secret")

    def _find(self, exchange: Exchange) -> Handler:
        methods = self._handlers.get(exchange.path)
        if methods is None:
            raise Fault(404, "NotFound", f"a sandbox has nothing at {exchange.path}")
        handler = methods.get(exchange.method)
        if handler is None:
            raise Fault(405, "MethodNotAllowed", f"{exchange.path} takes {', '.join(methods)}, not {exchange.method}")
        return handler

    async def _upgrade(self, request: h11.Request, upgrade: Upgrade) -> None:
        """Hand the connection over, together with what came behind the request."""
        await self._require_no_body()
        try:
            websocket = WebSocket.accept(
                headers=list(request.headers),
                limits=WebSocketLimits(max_message_bytes=self._settings.limits.message_bytes),
                trailing=self._h11.trailing_data[0],
            )
        except LocalProtocolError as exc:
            raise Fault(400, "InvalidRequest", str(exc)) from None
        self._hand_over(upgrade(websocket))

    async def _upgrade_raw(self, exchange: Exchange, upgrade: RawUpgrade) -> None:
        """Hand the connection over as it is, once what takes it is ready."""
        if exchange.headers.get(b"upgrade", b"").lower() != b"tcp":
            raise Fault(400, "InvalidRequest", f"{exchange.path} takes requests with Upgrade: tcp")
        await self._require_no_body()
        protocol = await upgrade(exchange.query)
        switching = [("connection", "Upgrade"), ("upgrade", "tcp")]
        self._transport.write(self._h11.send(h11.InformationalResponse(status_code=101, headers=switching)) or b"")
        self._hand_over(protocol)
        if ahead := self._h11.trailing_data[0]:
            protocol.data_received(ahead)

    async def _require_no_body(self) -> None:
        async for _ in self.read_body():
            raise Fault(400, "InvalidRequest", "a request to upgrade has no body")

    def _hand_over(self, protocol: asyncio.Protocol) -> None:
        self._connections[self._transport] = protocol
        self._transport.set_protocol(protocol)
        self._transport.resume_reading()
        protocol.connection_made(self._transport)

    async def _is_reusable(self) -> bool:
        """Read what is left of the request; return whether another may follow."""
        if self._unasked:  # the client may send the body or not: nobody can tell what follows
            return False
        left = _DISCARD_BYTES
        async for data in self.read_body():
            left -= len(data)
            if left < 0:
                break
        if self._h11.their_state is h11.SEND_BODY:
            await self._linger()
        return self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE

    async def _linger(self) -> None:
        """Let a client that is still sending read the response; if it goes away, this task is cancelled."""
        self._discarding = True
        self._transport.resume_reading()
        with contextlib.suppress(OSError):  # the client reset the connection a moment ago
            self._transport.write_eof()
        await asyncio.sleep(_LINGER_SECONDS)

    async def _reply_fault(self, exchange: Exchange, fault: Fault) -> None:
        if exchange.responded:  # half a response is out: break it off, so that it is not taken for a whole one
            self._transport.abort()
            raise asyncio.CancelledError
        await exchange.reply(fault.status, fault.body)

    async def _refuse(self, exc: h11.RemoteProtocolError | None) -> None:
        """Answer what was not HTTP, or what made us fail, if an answer can still be given."""
        if self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._transport.abort()
            return
        if exc is None:
            fault = Fault(500, "InternalError", "the sandbox's daemon failed")
        else:
            fault = Fault(exc.error_status_hint, "InvalidRequest", f"the request is not valid HTTP: {exc}")
        data = json.dumps(fault.body).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(data))), ("connection", "close")]
        await self.send(h11.Response(status_code=fault.status, headers=headers))
        await self.send(h11.Data(data=data))
