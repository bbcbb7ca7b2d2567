"""What leads to a service of a sandbox: URLs and a token that is renewed in time, and requests that use it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, Self

import anyio

from ..drivers.http_pool import HttpPool
from ..drivers.service_http import MAX_ANSWER_BYTES, Answer, ServiceHttp
from ..drivers.service_websocket import ServiceWebSocketDriver, WebSocketRefused
from ..errors import LocalProtocolError, RemoteProtocolError, SandboxConnectionError
from ..protocol.service_requests import ServiceURLRecord, ServiceWish
from .pending import Pending
from .service_websocket import AsyncServiceWebSocket, refused_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from types import TracebackType

    import httpx


__all__ = ["AsyncServiceResponse", "AsyncServiceURL", "TokenSource"]

MIN_TOKEN_AGE: Final = 10.0
"""Seconds in which a token is not renewed for being refused: then it is the program that refuses."""

DEFAULT_RETRIES: Final = 3


class TokenSource:
    """Gets tokens for one service from the control plane, one at a time for all who need one."""

    def __init__(self, wish: ServiceWish, fetch: Callable[[], Awaitable[ServiceURLRecord]]) -> None:
        self._wish = wish
        self._fetch = fetch
        self._lock = anyio.Lock()
        self._made = self._expires = 0.0
        self.record: ServiceURLRecord | None = None

    async def current(self) -> ServiceURLRecord:
        """A token that is valid for a while. One that is still valid is kept if no other can be had now."""
        async with self._lock:
            now = time.time()
            # By our own clock on both ends, which need not be that of the server.
            if self.record is None or not self._made <= now < self._expires - self._wish.margin:
                try:
                    return await self._renew()
                except SandboxConnectionError:
                    if self.record is None or now >= self._expires:
                        raise
            return self.record

    async def newer(self, refused: ServiceURLRecord) -> ServiceURLRecord | None:
        """Another token than the one that was refused; None if that is so new that another would do no better."""
        async with self._lock:
            if self.record is not None and self.record.token != refused.token:
                return self.record
            if 0 <= time.time() - self._made < MIN_TOKEN_AGE:
                return None
            return await self._renew()

    async def _renew(self) -> ServiceURLRecord:
        made = time.time()
        self.record = record = await self._fetch()
        self._made, self._expires = made, made + self._wish.expires_in_seconds
        return record


class AsyncServiceURL:
    """The way to an HTTP service in a sandbox.

    Get one with `AsyncSandbox.service`. It renews its token before that expires, or when the service refuses it.

    ::

        service = await sandbox.service(8000)
        response = await service.post("/items", json={"name": "a"})

    The methods for requests take the keywords of `httpx.request`, such as `json`, `params`, `headers` and
    `timeout` (by default 30 s of silence), and give the `httpx.Response` whatever its status. Redirects are not
    followed. What could not be sent is sent again; so is what was cut off or answered 502, 503 or 504, if its method is
    idempotent and its body can be sent twice. Every request may raise `SandboxConnectionError`, `RequestTimeoutError`
    and, where a token is needed, what `AsyncSandbox.service` raises.
    """

    def __init__(
        self,
        browser_url: str,
        service_url: str,
        token: str,
        expires_at: str,
        *,
        embed_url: str = "",
        embed_origins: Sequence[str] | None = None,
    ) -> None:
        """Make one of a token that was got elsewhere, and is not renewed. It has no connections to close."""
        self._record = ServiceURLRecord(
            browser_url=browser_url,
            service_url=service_url,
            token=token,
            expires_at=expires_at,
            embed_url=embed_url,
            embed_origins=tuple(embed_origins or ()),
        )
        self._source: TokenSource | None = None
        self._http = ServiceHttp(pool=None, max_retries=DEFAULT_RETRIES)

    @classmethod
    def _of(cls, source: TokenSource, record: ServiceURLRecord, *, pool: HttpPool, max_retries: int) -> AsyncServiceURL:
        url = cls(
            record.browser_url,
            record.service_url,
            record.token,
            record.expires_at,
            embed_url=record.embed_url,
            embed_origins=record.embed_origins,
        )
        url._source = source
        url._http = ServiceHttp(pool=pool, max_retries=max_retries)
        return url

    def __repr__(self) -> str:
        return f"AsyncServiceURL(service_url={self._record.service_url!r})"

    # --- the URLs -----------------------------------------------------------------------------------------------------

    @property
    def token(self) -> str:
        """The last token, which may have expired; see `get_token`."""
        return self._last.token

    @property
    def service_url(self) -> str:
        """Where programs reach the service, with the token in a header."""
        return self._last.service_url

    @property
    def browser_url(self) -> str:
        """The last URL for a browser; see `get_browser_url`."""
        return self._last.browser_url

    @property
    def expires_at(self) -> str:
        """When the last token expires, RFC 3339."""
        return self._last.expires_at

    @property
    def embed_url(self) -> str:
        """The last URL for a frame; see `get_embed_url`."""
        return self._last.embed_url

    @property
    def embed_origins(self) -> list[str]:
        """The origins whose pages may show the service in a frame."""
        return list(self._last.embed_origins)

    async def get_token(self) -> str:
        """A valid token, for the header `X-Langsmith-Sandbox-Service-Token`."""
        return (await self._current()).token

    async def get_service_url(self) -> str:
        """Where programs reach the service, with the token in a header."""
        return (await self._current()).service_url

    async def get_browser_url(self) -> str:
        """A URL that lets a browser in. Whoever has it can use the service until it expires."""
        return (await self._current()).browser_url

    async def get_expires_at(self) -> str:
        """When the token expires, RFC 3339; renewed if that is about to be."""
        return (await self._current()).expires_at

    async def get_embed_url(self) -> str:
        """A URL for a frame in a page of one of the `embed_origins`; empty without such."""
        return (await self._current()).embed_url

    # --- requests -----------------------------------------------------------------------------------------------------

    async def request(self, method: str, path: str = "/", **options: Any) -> httpx.Response:
        """Send a request to a path of the service. An answer of more than 256 MiB is an error: use `stream`.

        Raises:
            ValueError: The path leads out of the service, or redirects are to be followed.
        """
        return await self._http.request(await self._current(), self._newer, method, path, options)

    async def get(self, path: str = "/", **options: Any) -> httpx.Response:
        """Send a GET; see `request`."""
        return await self.request("GET", path, **options)

    async def post(self, path: str = "/", **options: Any) -> httpx.Response:
        """Send a POST; see `request`."""
        return await self.request("POST", path, **options)

    async def put(self, path: str = "/", **options: Any) -> httpx.Response:
        """Send a PUT; see `request`."""
        return await self.request("PUT", path, **options)

    async def patch(self, path: str = "/", **options: Any) -> httpx.Response:
        """Send a PATCH; see `request`."""
        return await self.request("PATCH", path, **options)

    async def delete(self, path: str = "/", **options: Any) -> httpx.Response:
        """Send a DELETE; see `request`."""
        return await self.request("DELETE", path, **options)

    def stream(self, method: str, path: str = "/", **options: Any) -> Pending[AsyncServiceResponse]:
        """Send a request, and receive the answer's body as it comes.

        `async with service.stream("GET", "/events") as response` closes it at the end; otherwise close it
        with `aclose`. The arguments and errors are those of `request`.
        """

        async def send() -> AsyncServiceResponse:
            answer = await self._http.stream(await self._current(), self._newer, method, path, options)
            return AsyncServiceResponse(answer)

        return Pending(send, "this request was sent already; call stream() for another one")

    def websocket(self, path: str = "/", *, headers: Mapping[str, str] | None = None) -> Pending[AsyncServiceWebSocket]:
        """Open a websocket to a path of the service.

        `async with service.websocket("/ws") as websocket` closes it at the end; otherwise close it with `aclose`. It is
        not opened again when it is lost.

        Raises:
            ValueError: The path leads out of the service, or a header cannot be sent.
            SandboxAuthenticationError: The service refused the token.
            SandboxConnectionError: There is no websocket there.
        """

        async def connect() -> AsyncServiceWebSocket:
            record = await self._current()
            context = (self._http.pool or HttpPool()).ssl_context if record.service_url.startswith("https:") else None
            try:
                return AsyncServiceWebSocket(await ServiceWebSocketDriver.open(record, path, headers, context))
            except WebSocketRefused as refusal:
                newer = await self._newer(record) if refusal.refused.status == 401 else None
                if newer is None:
                    raise refused_error(refusal.refused) from None
            try:
                return AsyncServiceWebSocket(await ServiceWebSocketDriver.open(newer, path, headers, context))
            except WebSocketRefused as refusal:
                raise refused_error(refusal.refused) from None

        return Pending(connect, "this websocket was opened already; call websocket() for another one")

    # --- tokens -------------------------------------------------------------------------------------------------------

    @property
    def _last(self) -> ServiceURLRecord:
        return (self._source and self._source.record) or self._record

    async def _current(self) -> ServiceURLRecord:
        return self._record if self._source is None else await self._source.current()

    async def _newer(self, refused: ServiceURLRecord) -> ServiceURLRecord | None:
        return None if self._source is None else await self._source.newer(refused)


class AsyncServiceResponse:
    """An answer of a service whose body is received as it comes.

    ::

        async with service.stream("GET", "/events") as response:
            async for piece in response:
                ...
    """

    status_code: int
    headers: httpx.Headers

    def __init__(self, answer: Answer) -> None:
        """Answers come from `AsyncServiceURL.stream`; this is not for users."""
        self.status_code = answer.response.status_code
        self.headers = answer.response.headers
        self._answer = answer
        self._closed = False

    def __repr__(self) -> str:
        return f"AsyncServiceResponse(status_code={self.status_code})"

    async def receive(self) -> bytes:
        """Receive the next piece, of any size; empty at the end of the body.

        Raises:
            SandboxConnectionError: The body was cut off.
            LocalProtocolError: The response is closed.
        """
        if self._closed:
            raise LocalProtocolError("this response is closed")
        return await self._answer.receive()

    async def read(self) -> bytes:
        """Receive the rest of the body, of at most 256 MiB. The errors are those of `receive`."""
        pieces, size = [], 0
        while piece := await self.receive():
            pieces.append(piece)
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise RemoteProtocolError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes: receive it in pieces")
        return b"".join(pieces)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if piece := await self.receive():
            return piece
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the exchange. Closing again does nothing. It is shielded from cancellation, and quick."""
        self._closed = True
        await self._answer.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the response."""
        await self.aclose()
