"""One exchange answered by another HTTP/1.1 server, over a connection of its own; bodies stream both ways at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import h11

from .errors import ApiError
from .limits import EXPECT_PATIENCE, MAX_HEAD, MAX_INTERIM, SERVICE_BODY_TIMEOUT
from .splice import Splice

if TYPE_CHECKING:
    from .exchange import Exchange, Headers
    from .streams import Stream

__all__ = ["WEBSOCKET", "Policy", "Relay"]

WEBSOCKET = ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"))

MAX_REASON = 256
"""Characters of h11's complaint, which quotes the peer, that are passed on."""

OnSpliceGone = Callable[[Splice], None]


class Policy(Protocol):
    """Which headers cross. `peer` is what errors call the server that is asked."""

    @property
    def peer(self) -> str: ...

    @property
    def transparent(self) -> bool:
        """Whether trailers, interim answers and `Expect` cross too. If not, the exchange answers `Expect` by itself."""

    def request_trailers(self, trailers: Headers) -> Headers: ...

    def answer(self, status: int, headers: Headers) -> Headers: ...

    def interim(self, headers: Headers) -> Headers: ...

    def answer_trailers(self, trailers: Headers) -> Headers: ...


class Relay:
    """Sends one request, whose body is the exchange's, and gives the exchange the answer.

    `received` is what has been read from `stream` already. Whoever makes a relay closes the stream, unless it has
    become part of a splice.
    """

    def __init__(
        self, exchange: Exchange, stream: Stream, policy: Policy, on_splice_gone: OnSpliceGone, received: bytes = b""
    ) -> None:
        self._exchange = exchange
        self._stream = stream
        self._policy = policy
        self._on_splice_gone = on_splice_gone
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self._invited = asyncio.Event()
        if received:
            self._h11.receive_data(received)

    async def run(self, request: h11.Request) -> Splice | None:
        """Return the splice if both sides changed to websocket.

        Raises ApiError 502 when the other server does not answer as it must, 408 when the client stops in the middle
        of a body. When the exchange ends early, be it by cancellation, the other server must see its connection closed.
        """
        data = self._h11.send(request) or b""
        if self._exchange.request_complete:
            self._stream.write(data + (self._h11.send(h11.EndOfMessage()) or b""))
            return await self._relay_answer()
        self._stream.write(data)
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

    async def _relay_body(self) -> None:
        """Client to server. A server that has stopped reading may have answered already: that is not an error here."""
        if self._policy.transparent and self._exchange.awaits_continue:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXPECT_PATIENCE):
                    await self._invited.wait()
        while (data := await self._next_piece()) is not None:
            try:
                await self._stream.send(*(self._h11.send_with_data_passthrough(h11.Data(data=data)) or ()))
            except ConnectionError:
                return
        trailers = list(self._policy.request_trailers(self._exchange.request_trailers))
        self._stream.write(self._h11.send(h11.EndOfMessage(headers=trailers)) or b"")

    async def _next_piece(self) -> bytes | None:
        if not self._policy.transparent:
            return await self._exchange.receive_body()
        while True:
            try:
                async with asyncio.timeout(SERVICE_BODY_TIMEOUT):
                    return await self._exchange.receive_body()
            except TimeoutError:
                if not self._exchange.answered:
                    message = f"the request's body did not go on for {SERVICE_BODY_TIMEOUT:g} s"
                    raise ApiError(408, "RequestTimeout", message) from None

    async def _relay_answer(self) -> Splice | None:
        """Server to client."""
        exchange, policy = self._exchange, self._policy
        try:
            response = await self._answer_head()
        except h11.ProtocolError as error:
            raise ApiError(
                502, "ConnectionError", f"{policy.peer} did not answer: {str(error)[:MAX_REASON]}"
            ) from error
        if isinstance(response, h11.InformationalResponse):
            return self._splice(response)
        if not isinstance(response, h11.Response):
            raise ApiError(502, "ConnectionError", f"{policy.peer} closed the connection instead of answering")
        names = {name for name, _ in response.headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            raise ApiError(502, "ConnectionError", f"{policy.peer} framed its answer in two ways")
        await exchange.send_head(response.status_code, policy.answer(response.status_code, response.headers))
        try:
            while isinstance(event := await self._next_event(), h11.Data):
                await exchange.send_body(event.data)
        except h11.RemoteProtocolError as error:
            # Too late for another answer: all that is left is not to end this one as if it were whole.
            raise ConnectionAbortedError(f"{policy.peer} broke off its answer: {error}") from error
        trailers = event.headers if isinstance(event, h11.EndOfMessage) else ()
        await exchange.finish(policy.answer_trailers(trailers))
        return None

    async def _answer_head(self) -> object:
        """The answer's head, or that of 101."""
        for _ in range(MAX_INTERIM):
            response = await self._next_event()
            if not isinstance(response, h11.InformationalResponse) or response.status_code == 101:
                return response
            if response.status_code == 100:
                self._invited.set()
            elif self._policy.transparent:
                await self._exchange.inform(response.status_code, self._policy.interim(response.headers))
        raise ApiError(502, "ConnectionError", f"{self._policy.peer} sent {MAX_INTERIM} interim answers and no other")

    async def _next_event(self) -> object:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            self._h11.receive_data(await self._stream.receive())
        return event

    def _splice(self, response: h11.InformationalResponse) -> Splice:
        headers = [*WEBSOCKET, *self._policy.answer(101, response.headers)]
        from_client = self._exchange.upgrade(headers)
        return Splice(
            self._exchange.stream,
            self._stream,
            from_client=from_client,
            from_daemon=self._h11.trailing_data[0],
            on_gone=self._on_splice_gone,
        )


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for their end; an error of one that was not awaited is a consequence of another's."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()
