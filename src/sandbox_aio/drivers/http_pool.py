"""The connections of one client.

They are opened when first needed, shared by all its calls, and bound to one process and one event loop at a time.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import cached_property
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING

import httpx
from anyio.lowlevel import current_token

from ..errors import ClientClosedError, ForkedClientError, LocalProtocolError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from anyio.lowlevel import EventLoopToken

__all__ = ["HttpPool"]

MAX_CONNECTIONS = 512
"""Open connections at once; further calls wait for one, within their timeout."""
MAX_IDLE_CONNECTIONS = 64
"""Connections kept for the next call."""
IDLE_SECONDS = 30.0
"""How long they are kept."""
CONNECT_SECONDS = 10.0
"""The longest that making one connection may take."""

_LOOPBACK = ("all://localhost", "all://127.0.0.1", "all://[::1]")


class HttpPool:
    """Lends httpx clients. No redirects, no cookies, no proxy for loopback addresses."""

    def __init__(self) -> None:
        self._clients: dict[bool, httpx.AsyncClient] = {}
        self._pid = os.getpid()
        self._loop: EventLoopToken | None = None
        self._lent = 0
        self._closed = False

    @property
    def opened(self) -> bool:
        """Whether there may be connections to close."""
        return bool(self._clients)

    @cached_property
    def ssl_context(self) -> ssl.SSLContext:
        """The one context of this client. Reading the certificates takes tens of milliseconds, hence only once."""
        return httpx.create_ssl_context()

    def check_usable(self) -> None:
        """Raise ClientClosedError or ForkedClientError if the client cannot be used here any more."""
        if self._pid != os.getpid():
            raise ForkedClientError("this client was made before a fork; make a new one in each process")
        if self._closed:
            raise ClientClosedError("this client is closed; make a new one")

    @contextmanager
    def lend(self, url: str) -> Iterator[httpx.AsyncClient]:
        """Lend the httpx client for a URL.

        Raises:
            ClientClosedError, ForkedClientError: See `check_usable`.
            LocalProtocolError: Calls of another event loop are under way.
        """
        self.check_usable()
        self._bind()
        self._lent += 1
        try:
            yield self._client(url)
        except RuntimeError:
            self.check_usable()  # Closing the pool while calls are under way surfaces as a RuntimeError.
            raise
        finally:
            self._lent -= 1

    async def aclose(self) -> None:
        """Close all connections; calls that are under way fail. Closing again does nothing."""
        self._closed = True
        clients = list(self._clients.values())
        self._clients.clear()
        if self._pid == os.getpid() and self._loop == current_token():
            for client in clients:
                await client.aclose()

    def _bind(self) -> None:
        """Belong to the running event loop. The connections of an earlier `asyncio.run` are dropped."""
        loop = current_token()
        if self._loop != loop:
            if self._lent:
                raise LocalProtocolError("this client is in use in another event loop; make one for each loop")
            self._clients.clear()
            self._loop = loop

    def _client(self, url: str) -> httpx.AsyncClient:
        secure = url.startswith("https:")
        client = self._clients.get(secure)
        if client is None:
            verify = self.ssl_context if secure else False
            client = self._clients[secure] = httpx.AsyncClient(
                verify=verify,
                limits=httpx.Limits(
                    max_connections=MAX_CONNECTIONS,
                    max_keepalive_connections=MAX_IDLE_CONNECTIONS,
                    keepalive_expiry=IDLE_SECONDS,
                ),
                follow_redirects=False,
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
                headers={"user-agent": "sandbox-aio", "accept": "*/*", "accept-encoding": "identity"},
                mounts=dict.fromkeys(_LOOPBACK),
            )
        return client
