"""A public connection: one request after another until either side wants no more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import h11

from .errors import ApiError
from .exchange import Exchange, Head
from .limits import MAX_HEAD
from .request_reading import read_request

if TYPE_CHECKING:
    from .streams import Stream

__all__ = ["Handler", "PublicConnection"]

logger: logging.Logger = logging.getLogger("sandbox_aio.server")

Handler = Callable[[Exchange], Awaitable[None]]


class PublicConnection:
    """Reads request heads and gives each exchange to the handler, which answers it or raises ApiError."""

    def __init__(self, stream: Stream, handler: Handler, *, scheme: str) -> None:
        self._stream = stream
        self._handler = handler
        self._scheme = scheme
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._in_exchange = False
        self._last = False

    async def serve(self) -> None:
        """Serve until the connection ends. When the client leaves in the middle of an exchange, that is cancelled."""
        task = asyncio.current_task()
        assert task is not None

        def gone() -> None:
            if self._in_exchange:
                task.cancel()

        self._stream.on_gone = gone
        try:
            while not self._last and (request := await self._next_request()) is not None:
                self._in_exchange = True
                exchange = await self._handle(request)
                self._in_exchange = False
                if exchange is not None and exchange.upgraded:
                    return
                if exchange is None or not self._start_next_cycle():
                    break
            await self._stream.close_gently()
        except (ConnectionError, h11.ProtocolError) as error:
            logger.debug("connection dropped: %s", error)
            self._stream.abort()
        except BaseException:
            self._stream.abort()
            raise
        finally:
            self._stream.on_gone = None

    def finish(self) -> None:
        """Serve the exchange that is under way, then close; close at once if there is none."""
        self._last = True
        if not self._in_exchange:
            self._stream.close()

    async def _next_request(self) -> h11.Request | None:
        """The next request's head; None when there will be none, the reason already told to the client."""
        try:
            return await read_request(self._h11, self._stream)
        except ApiError as error:
            await self._refuse(error)
        return None

    async def _handle(self, request: h11.Request) -> Exchange | None:
        """Have a request handled. None when the connection cannot go on."""
        try:
            head = Head.of(request)
        except ApiError as error:
            await self._refuse(error)
            return None
        exchange = Exchange(self._h11, self._stream, head, scheme=self._scheme)
        try:
            await self._handler(exchange)
        except ApiError as error:
            _log(head, error)
            await _answer_error(exchange, error)
        except (ConnectionError, h11.ProtocolError):
            raise
        except Exception:
            fault = ApiError(500, "InternalError", "the server failed; its log has the reason under this error_id")
            logger.exception("%s (error_id=%s)", fault, fault.error_id)
            await _answer_error(exchange, fault)
        return exchange

    async def _refuse(self, error: ApiError) -> None:
        """Answer something that is not a request we can read."""
        logger.info("%s (error_id=%s)", error, error.error_id)
        if self._h11.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [*error.headers(), (b"connection", b"close")]
            head = self._h11.send(h11.Response(status_code=error.status, headers=headers)) or b""
            await self._stream.send(head, error.body())

    def _start_next_cycle(self) -> bool:
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
            return True
        return False


async def _answer_error(exchange: Exchange, error: ApiError) -> None:
    if exchange.answered:
        raise ConnectionAbortedError(str(error)) from error  # Too late for another answer.
    await exchange.respond(error.status, error.headers(), error.body())


def _log(head: Head, error: ApiError) -> None:
    level = logging.WARNING if error.status >= 500 else logging.INFO
    logger.log(level, "%s %s: %s (error_id=%s)", head.method.decode(), head.path.decode(), error, error.error_id)
