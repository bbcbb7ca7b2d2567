"""The public side of the server: accepts connections, and sends every request where it belongs."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import socket
from typing import TYPE_CHECKING, Final, Literal

import attrs

from .asgi import Application, serve_asgi
from .connection import PublicConnection
from .downloads import Downloads
from .errors import ApiError
from .forward import FindDaemon, forward
from .hosts import ServiceHosts
from .limits import CLOSE_GRACE, MAX_CONNECTIONS, MAX_SERVICE_EXCHANGES
from .routing import ControlPlane, DataPlane, Download, Health, KeySet, Service, route
from .service_proxy import ServiceProxy
from .service_tokens import ServiceAuthority
from .streams import Stream

if TYPE_CHECKING:
    import ssl

    from sandbox_aio.runtimes.base import DaemonAddress

    from .auth import Gate
    from .exchange import Exchange
    from .hosts import ServiceTarget
    from .splice import Splice

__all__ = ["Router", "Services"]

logger: logging.Logger = logging.getLogger("sandbox_aio.server")

FAREWELL_TIMEOUT: Final = 0.25
"""Seconds that a sandbox's end waits for its daemon to come to a frame boundary."""

BACKLOG: Final = 4096
"""Connections that the system completes before they are accepted."""

OVERLOADED: Final = ApiError(503, "ServiceUnavailable", "the server has too many connections", retry_after=1)


@attrs.frozen(kw_only=True)
class Services:
    """What serves the programs in sandboxes and their files, to whoever has a token."""

    authority: ServiceAuthority
    hosts: ServiceHosts
    proxy: ServiceProxy
    downloads: Downloads


class Router:
    """Every public connection of a server, and every splice that one of them became.

    The host of a service serves that alone. Elsewhere, requests for a sandbox go to its daemon, the rest to the ASGI
    `app`. `app`, `find_daemon` and `services` may be set until the first request comes.
    """

    app: Application
    find_daemon: FindDaemon
    services: Services | None = None

    def __init__(self, gate: Gate, *, max_connections: int = MAX_CONNECTIONS) -> None:
        self._gate = gate
        self._max_connections = max_connections
        self._scheme = "http"
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], PublicConnection] = {}
        self._splices: dict[str, set[Splice]] = {}
        self._exchanges: dict[str, dict[asyncio.Task[None], Exchange]] = {}
        """By the sandbox's id, what its services are answering, and the tasks that wait for it."""
        self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def listen(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> tuple[str, int]:
        """Accept connections; return the address. Port 0 lets the system choose. Raises OSError."""
        self._scheme = "https" if tls is not None else "http"
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Stream(self._accept), host, port, ssl=tls, backlog=BACKLOG, reuse_address=True
        )
        bound = self._server.sockets[0].getsockname()
        return bound[0], bound[1]

    def stop_accepting(self) -> None:
        """Refuse new connections. Those that are open go on."""
        if self._server is not None:
            self._server.close()

    async def aclose(self, *, grace: float = CLOSE_GRACE) -> None:
        """End every connection: websockets with close code 1001 at a frame boundary, requests when they are answered.

        What is not over after `grace` seconds is cut off.
        """
        self.stop_accepting()
        self._closing = True
        for connection in list(self._connections.values()):
            connection.finish()
        for splices in list(self._splices.values()):
            for splice in list(splices):
                splice.depart(1001, within=grace)
        try:
            async with asyncio.timeout(grace + 0.5):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("cutting off %d connections at shutdown", len(self._connections))
            for task in list(self._connections):
                task.cancel()
            if self._connections:
                await asyncio.wait(self._connections)

    async def detach(self, id: str, why: Literal["stopped", "deleted"]) -> None:
        """Close the websockets of a sandbox before it goes. A command that ends with it ends in an `error` frame.

        An answer of a service that is under way is broken off: else it could end as if it were whole.
        """
        for task, exchange in self._exchanges.get(id, {}).items():
            if exchange.answered:
                task.cancel()
        splices = list(self._splices.get(id, ()))
        for splice in splices:
            if splice.carries_command:
                splice.depart(1000, last_message=_obituary(why), within=CLOSE_GRACE)
            else:
                splice.depart(1001 if why == "stopped" else 1000, within=CLOSE_GRACE)
        try:
            async with asyncio.timeout(FAREWELL_TIMEOUT):
                for splice in splices:
                    await splice.farewell_said.wait()
        except TimeoutError:
            pass  # A daemon that stays in the middle of a frame: its clients see the connection end instead.

    @property
    def connections(self) -> int:
        """Public connections that are open."""
        return len(self._connections) + sum(map(len, self._splices.values()))

    def _accept(self, stream: Stream) -> None:
        if self.connections >= self._max_connections:
            head = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n"
            fields = b"".join(b"%b: %b\r\n" % field for field in OVERLOADED.headers())
            stream.write(head + fields + b"\r\n" + OVERLOADED.body())
            stream.close()
            return
        _notice_dead_peers(stream.transport.get_extra_info("socket"))
        connection = PublicConnection(stream, self._handle, scheme=self._scheme)
        task = asyncio.get_running_loop().create_task(connection.serve())
        self._connections[task] = connection
        self._idle.clear()
        task.add_done_callback(self._connection_over)

    def _connection_over(self, task: asyncio.Task[None]) -> None:
        del self._connections[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a connection failed", exc_info=error)
        self._note_idle()

    async def _handle(self, exchange: Exchange) -> None:
        head = exchange.head
        services = self.services
        if services is not None and (target := services.hosts.find(head.host)) is not None:
            await self._serve(exchange, services.proxy, target, None)
            return
        match route(head.path):
            case Health():
                await exchange.respond(200, [(b"content-type", b"text/plain"), (b"content-length", b"3")], b"ok\n")
            case ControlPlane(base):
                self._gate.check(head)
                await serve_asgi(self.app, exchange, base=base)
            case DataPlane(reference, path):
                self._gate.check(head)
                id, address = await self.find_daemon(reference)
                await self._forward(exchange, id, address, path)
            case Service(target, path) if services is not None:
                if not path:
                    location = head.path + b"/" + (b"?" + head.query if head.query else b"")
                    await exchange.respond(308, [(b"location", location), (b"content-length", b"0")])
                    return
                await self._serve(exchange, services.proxy, target, path)
            case Download(token) if services is not None:
                await services.downloads.serve(exchange, token)
            case KeySet() if services is not None:
                body = json.dumps(services.authority.jwks()).encode()
                headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
                await exchange.respond(200, [*headers, (b"cache-control", b"max-age=60")], body)
            case _:
                raise ApiError(404, "NotFound", "this server offers no services")

    async def _forward(self, exchange: Exchange, id: str, address: DaemonAddress, path: bytes) -> None:
        query = exchange.head.query
        target = path + b"?" + query if query else path
        splice = await forward(exchange, address, target, on_splice_gone=functools.partial(self._splice_gone, id))
        if splice is not None:
            splice.carries_command = path == b"/execute/ws"
            self._keep(id, splice)

    async def _serve(self, exchange: Exchange, proxy: ServiceProxy, target: ServiceTarget, path: bytes | None) -> None:
        """Have a program in a sandbox answer, on its own host (no path) or below `/svc`."""
        id = target.sandbox_id
        if len(self._exchanges.get(id, ())) + len(self._splices.get(id, ())) >= MAX_SERVICE_EXCHANGES:
            raise ApiError(
                503, "ServiceUnavailable", "the sandbox's services are asked too much at once", retry_after=1
            )
        task = asyncio.current_task()
        assert task is not None
        under_way = self._exchanges.setdefault(id, {})
        under_way[task] = exchange
        gone = functools.partial(self._splice_gone, id)
        try:
            if path is None:
                splice = await proxy.serve_host(exchange, target, gone)
            else:
                splice = await proxy.serve_path(exchange, target, path, gone)
        finally:
            del under_way[task]
            if not under_way:
                del self._exchanges[id]
        if splice is not None:
            self._keep(id, splice)

    def _keep(self, id: str, splice: Splice) -> None:
        if not splice.over:
            self._splices.setdefault(id, set()).add(splice)
            if self._closing:
                splice.depart(1001, within=CLOSE_GRACE)

    def _splice_gone(self, id: str, splice: Splice) -> None:
        splices = self._splices.get(id, set())
        splices.discard(splice)
        if not splices:
            self._splices.pop(id, None)
        self._note_idle()

    def _note_idle(self) -> None:
        if not self._connections and not self._splices:
            self._idle.set()


def _notice_dead_peers(connection: socket.socket) -> None:
    """Have the system probe a silent peer: one that vanished without a word then counts as detached in two minutes."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 20), (socket.TCP_KEEPCNT, 3)):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _obituary(why: Literal["stopped", "deleted"]) -> str:
    return json.dumps({"type": "error", "error_type": "CommandError", "error": f"sandbox {why}"})
