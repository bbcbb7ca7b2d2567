"""A websocket to a service in a sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from ..errors import SandboxAuthenticationError, SandboxClientError, SandboxConnectionError
from ..protocol.http_call import HttpResponse
from ..protocol.http_errors import ErrorBody

if TYPE_CHECKING:
    from types import TracebackType

    from ..drivers.service_websocket import ServiceWebSocketDriver
    from ..protocol.upgrade import Refused

__all__ = ["AsyncServiceWebSocket", "refused_error"]


class AsyncServiceWebSocket:
    """A websocket to a service. One task may receive while others send.

    ::

        async with service.websocket("/ws") as websocket:
            await websocket.send("hello")
            async for message in websocket:
                ...

    Pings are answered while somebody receives.
    """

    def __init__(self, driver: ServiceWebSocketDriver) -> None:
        """Websockets come from `AsyncServiceURL.websocket`; this is not for users."""
        self._driver = driver

    async def send(self, message: str | bytes) -> None:
        """Send a text, or bytes as a binary message. A send that is cancelled ends the connection.

        Raises:
            SandboxConnectionError: The connection is over.
        """
        await self._driver.send(message)

    async def receive(self) -> bytes | None:
        """Receive the next message, of at most 16 MiB. A text comes as UTF-8. None: the service has closed it well.

        Cancelling loses nothing.

        Raises:
            SandboxConnectionError: The connection ended in another way.
            RemoteProtocolError: The service broke the protocol.
            LocalProtocolError: Another task receives.
        """
        return await self._driver.receive()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        message = await self.receive()
        if message is None:
            raise StopAsyncIteration
        return message

    async def aclose(self) -> None:
        """Close the connection; messages that were not received are lost. Shielded from cancellation, 1 s at most."""
        await self._driver.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connection."""
        await self.aclose()


def refused_error(refused: Refused) -> SandboxClientError:
    """The error of a service that answered with something else than a websocket."""
    words = ErrorBody.of(HttpResponse(status=refused.status, body=refused.body)).message
    kind = SandboxAuthenticationError if refused.status in (401, 403) else SandboxConnectionError
    return kind(f"the service answered {refused.status} instead of a websocket: {words}")
