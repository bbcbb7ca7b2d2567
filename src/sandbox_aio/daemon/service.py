"""The daemon as a whole: what it serves where, and how it ends."""

from __future__ import annotations

import asyncio
import functools
import signal
import socket
from typing import TYPE_CHECKING

from .command_socket import CommandSocket
from .commands import CommandHub
from .execute import execute
from .files import Files
from .http import HttpConnection
from .raw_connection import RawConnection, dial_for
from .search import Search
from .tunnel_socket import TunnelSocket

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..protocol.websocket import WebSocket
    from .http import Exchange, Handler
    from .settings import DaemonSettings

__all__ = ["Service"]

_CLOSE_SECONDS = 1.0
"""How long clients have to take their last bytes when the daemon ends."""
_BACKLOG = 4096
"""Connections that wait to be accepted; the kernel lowers it to `net.core.somaxconn`."""


class Service:
    """Serves one sandbox. Make it inside the event loop, on the main thread."""

    def __init__(self, settings: DaemonSettings) -> None:
        self._settings = settings
        self._hub = CommandHub(settings)
        self._connections: dict[asyncio.BaseTransport, asyncio.Protocol] = {}
        self._loop = asyncio.get_running_loop()

    async def serve(self, listener: socket.socket) -> None:
        """Serve until SIGTERM; then close websockets with 1001, and kill every command."""
        terminated = asyncio.Event()
        self._hub.reaper.install()
        self._loop.add_signal_handler(signal.SIGTERM, terminated.set)
        server = await self._start(listener)
        self._hub.reaper.reap()
        await terminated.wait()
        server.close()
        for protocol in tuple(self._connections.values()):
            if isinstance(protocol, CommandSocket | TunnelSocket):
                protocol.shut_down()
        self._hub.marks.kill_all()
        deadline = self._loop.time() + _CLOSE_SECONDS
        while self._loop.time() < deadline and any(map(_has_unsent_bytes, self._connections)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def _start(self, listener: socket.socket) -> asyncio.AbstractServer:
        factory = functools.partial(
            HttpConnection,
            self._settings,
            self._handlers(),
            {"/execute/ws": self._open_socket, "/tunnel": self._open_tunnel},
            {"/connect": self._connect},
            self._connections,
        )
        if listener.family == socket.AF_UNIX:
            return await self._loop.create_unix_server(factory, sock=listener, backlog=_BACKLOG)
        return await self._loop.create_server(factory, sock=listener, backlog=_BACKLOG)

    def _open_socket(self, websocket: WebSocket) -> asyncio.Protocol:
        return CommandSocket(self._hub, websocket, self._connections)

    def _open_tunnel(self, websocket: WebSocket) -> asyncio.Protocol:
        return TunnelSocket(websocket, self._settings.limits, self._connections)

    async def _connect(self, query: Mapping[str, str]) -> asyncio.Protocol:
        return await RawConnection.join(await dial_for(query), self._connections)

    def _handlers(self) -> Mapping[str, Mapping[str, Handler]]:
        files, search = Files(self._settings), Search(self._settings)
        return {
            "/healthz": {"GET": _healthz},
            "/execute": {"POST": functools.partial(execute, self._hub, self._settings.limits)},
            "/upload": {"POST": files.upload},
            "/download": {"GET": files.download, "HEAD": files.download},
            "/glob": {"POST": search.glob},
            "/grep": {"POST": search.grep},
        }


async def _healthz(exchange: Exchange) -> None:
    await exchange.reply(200, {"status": "ok"})


def _has_unsent_bytes(transport: asyncio.BaseTransport) -> bool:
    return isinstance(transport, asyncio.Transport) and transport.get_write_buffer_size() > 0
