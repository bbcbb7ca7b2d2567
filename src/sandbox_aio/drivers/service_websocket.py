"""A websocket to a service, without tasks of its own: who receives reads the connection, who sends writes it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import anyio

from ..errors import (
    LocalProtocolError,
    RemoteProtocolError,
    SandboxConnectionError,
    SandboxConnectTimeoutError,
)
from ..protocol.service_requests import TOKEN_HEADER, websocket_target
from ..protocol.websocket import Closed, Opened, Refused, WebSocket
from .transport import Address, open_transport

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from ..protocol.service_requests import ServiceURLRecord
    from .transport import Transport

__all__ = ["ServiceWebSocketDriver", "WebSocketRefused"]

OPEN_SECONDS: Final = 30.0
"""How long connecting may take, upgrade included."""

CLOSE_SECONDS: Final = 1.0
"""How long the other side may take to answer a close frame."""

NORMAL: Final = frozenset((1000, 1001, 1005))
"""Codes of a close that loses nothing."""


class WebSocketRefused(Exception):
    """The service answered with something else than a websocket. Never leaves the client."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(f"status {refused.status}")
        self.refused = refused


class ServiceWebSocketDriver:
    """One connection that is open. One task may receive while others send."""

    def __init__(self, transport: Transport, websocket: WebSocket) -> None:
        self._transport = transport
        self._websocket = websocket
        self._messages: deque[bytes] = deque()
        self._closed: Closed | None = None
        self._sending = anyio.Lock()
        self._receiving = self._opened = False
        self._left = False
        """Whether the transport has taken a part of what it was given."""
        self._answer = b""
        """To the last ping, or to a close frame, if it could not be sent at once. Earlier pings need no other."""

    @classmethod
    async def open(
        cls, record: ServiceURLRecord, path: str, headers: Mapping[str, str] | None, context: ssl.SSLContext | None
    ) -> ServiceWebSocketDriver:
        """Connect. Raises WebSocketRefused, a SandboxConnectionError, or ValueError for what cannot be sent."""
        address = Address.of(record.service_url)
        fields = [(name.encode("ascii"), value.encode("latin-1")) for name, value in (headers or {}).items()]
        try:
            websocket = WebSocket.connect(
                host=address.authority,
                target=websocket_target(record.service_url, path),
                headers=[*fields, (TOKEN_HEADER.encode(), record.token.encode())],
            )
        except LocalProtocolError as error:
            raise ValueError(str(error)) from error
        try:
            with anyio.fail_after(OPEN_SECONDS):
                transport = await open_transport(address, context if address.tls else None)
                driver = cls(transport, websocket)
                try:
                    await driver._upgrade()
                except BaseException:
                    transport.close()
                    raise
        except TimeoutError:
            message = f"no websocket to {address.authority} within {OPEN_SECONDS:g} s"
            raise SandboxConnectTimeoutError(message) from None
        return driver

    def _over(self) -> bool:
        return self._closed is not None

    async def receive(self) -> bytes | None:
        """The next message, text as UTF-8; None when the service has closed the connection well.

        Raises SandboxConnectionError or RemoteProtocolError if it ended in another way.
        """
        if self._receiving:
            raise LocalProtocolError("another task receives from this websocket")
        self._receiving = True
        try:
            while not self._messages and not self._over():
                await self._read()
        finally:
            self._receiving = False
        if self._messages:
            return self._messages.popleft()
        assert self._closed is not None
        self._transport.close()
        if self._closed.code in NORMAL:
            return None
        message = f"the websocket ended with {self._closed.code}: {self._closed.reason or 'no reason'}"
        raise RemoteProtocolError(message) if self._closed.violation else SandboxConnectionError(message)

    async def send(self, message: str | bytes) -> None:
        """Send text, or bytes as a binary message. Cancelled, it may have sent a part, and the connection is over."""
        async with self._sending:
            if self._over():
                raise SandboxConnectionError("the websocket is closed")
            if isinstance(message, str):
                self._websocket.send_text(message)
            else:
                self._websocket.send_binary(message)
            out = b"".join(self._websocket.bytes_to_send())
            try:
                alive = not self._left or await self._transport.finish_send()
                self._left = False
                while alive and out:
                    alive = await self._transport.send(out)
                    out, self._answer = self._answer, b""
            except BaseException:
                self._transport.close()
                raise
            if not alive:
                raise SandboxConnectionError("the websocket was cut off")

    async def aclose(self) -> None:
        """Say goodbye, wait a moment for the answer, and close. Shielded from cancellation."""
        if not self._over() and not self._sending.locked() and not self._left:
            self._websocket.close(anyio.current_time())
            self._transport.send_now(b"".join(self._websocket.bytes_to_send()))
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                while not self._over() and not self._receiving:
                    await self._read()
                    self._messages.clear()
        self._closed = Closed(code=1006, reason="it was closed here")
        self._messages.clear()
        self._transport.close()

    async def _upgrade(self) -> None:
        if not await self._transport.send(b"".join(self._websocket.bytes_to_send())):
            raise SandboxConnectionError("the connection was cut off during the websocket's upgrade")
        while not self._opened and self._closed is None:
            await self._read()
        if not self._opened and self._closed is not None:
            raise SandboxConnectionError(f"no websocket: {self._closed.reason}")

    async def _read(self) -> None:
        """Take what has come, and answer pings if that needs no waiting; else the next send does."""
        self._feed(await self._transport.receive())
        for event in self._websocket.events():
            if isinstance(event, Closed):
                self._closed = event
            elif isinstance(event, Refused):
                raise WebSocketRefused(event)
            elif isinstance(event, Opened):
                self._opened = True
            else:
                self._messages.append(bytes(event))
        if out := self._websocket.bytes_to_send():
            if self._sending.locked() or self._left:
                self._answer = out[-1]
            else:
                self._left = not self._transport.start_send(b"".join(out))

    def _feed(self, data: bytes | memoryview) -> None:
        if data:
            self._websocket.receive_bytes(data, anyio.current_time())
        else:
            self._websocket.receive_eof(anyio.current_time())
