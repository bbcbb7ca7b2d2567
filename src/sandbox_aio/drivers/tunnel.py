"""Runs one tunnel: local connections on one side, a `TunnelLink` and its connections on the other.

One task reads the tunnel's connection and hands what it brings to the local sockets. Each local connection has a task
that reads it; another one only while its program is slower than the tunnel. Whoever has something to send sends what
goes at once; a writer's task sends the rest. No bytes wait anywhere but within the windows of their stream.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import socket
from typing import TYPE_CHECKING, Final

import anyio
from anyio.lowlevel import checkpoint

from ..errors import LocalProtocolError, SandboxClientError, SandboxConnectTimeoutError, TunnelError
from ..models import TunnelStatistics
from ..protocol.tunnel import StreamConnected, StreamRefused, TunnelClosed, TunnelOpened
from ..protocol.tunnel_errors import error_of_loss, error_of_status
from ..protocol.yamux_events import StreamData, StreamEnded, StreamReset, StreamWritable
from .local_socket import LocalConnection, break_off, end, try_read, try_write
from .scopes import single_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup, TaskStatus

    from ..protocol.tunnel import ClientTunnel
    from ..protocol.tunnel_link import TunnelLink
    from ..protocol.tunnel_preamble import TunnelTarget
    from .transport import Transport

__all__ = ["TunnelDriver"]

OPEN_SECONDS: Final = 30.0
"""How long one connection may take to be made, upgrade included."""
GOODBYE_SECONDS: Final = 1.0
"""How long closing may wait for the server to take the last bytes."""

_log = logging.getLogger("sandbox_aio.tunnel")


class TunnelDriver:
    """The tasks of one tunnel.

    Args:
        link: The core.
        target: Where every stream leads.
        connect: Opens a transport, or raises a `SandboxClientError`. The driver bounds its time.
        listener: Listens on this machine; the driver closes it.
        on_closed: Called once when the tunnel is closed.
    """

    def __init__(
        self,
        link: TunnelLink,
        target: TunnelTarget,
        connect: Callable[[], Awaitable[Transport]],
        listener: socket.socket,
        on_closed: Callable[[TunnelDriver], None],
    ) -> None:
        self._link = link
        self._target = target
        self._connect = connect
        self._listener = listener
        self._on_closed = on_closed
        self._tunnel: ClientTunnel | None = None
        self._transport: Transport | None = None
        self._locals: dict[int, LocalConnection] = {}
        self._news = anyio.Event()
        self._room = anyio.Event()
        self._work = anyio.Event()
        self._unsent = anyio.Event()
        self._writing = False
        self._scope = anyio.CancelScope()
        self._closed = anyio.Event()
        self._group: TaskGroup | None = None
        self._error: SandboxClientError | None = None
        self._counts = {"open": 0, "total": 0, "refused": 0, "sent": 0, "received": 0}
        self._last_error: SandboxClientError | None = None

    # --- the tunnel as a whole ---------------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Serve until `close`. Says that it has started when the first connection is there.

        Raises:
            SandboxClientError: the first connection could not be made.
        """
        try:
            with self._scope:
                async with single_error(), anyio.create_task_group() as group:
                    self._group = group
                    group.start_soon(self._keep_connected)
                    await self._want_connection()
                    task_status.started()
                    await self._accept()
        finally:
            self._release()
            self._closed.set()

    def close(self) -> None:
        """Listen no more, say goodbye, and end every task; `wait_closed` waits for that."""
        self._link.close()
        self._release()
        self._scope.cancel()

    async def wait_closed(self) -> None:
        """Wait until no task of the tunnel is left."""
        await self._closed.wait()

    def statistics(self) -> TunnelStatistics:
        """Count what has passed so far."""
        counts = self._counts
        return TunnelStatistics(
            open_connections=counts["open"],
            total_connections=counts["total"],
            refused_connections=counts["refused"],
            bytes_sent=counts["sent"],
            bytes_received=counts["received"],
            reconnects=self._link.reconnects,
            last_error=self._last_error,
        )

    async def check(self) -> None:
        """See whether the target accepts a connection.

        Raises:
            TunnelError: it does not; the subclass says why.
            SandboxClientError: the tunnel's connection is lost and could not be made anew.
        """
        local = LocalConnection(None)
        await self._open(local)
        try:
            while not (local.status or local.over):
                await local.changed.wait()
        finally:
            self._drop(local)
        if local.error is not None:
            raise local.error

    def _release(self) -> None:
        """Let go of everything that does not take waiting."""
        if self._listener.fileno() >= 0:
            anyio.notify_closing(self._listener)
            self._listener.close()
        tunnel, transport = self._tunnel, self._transport
        self._transport = None
        if tunnel is not None and transport is not None:
            if tunnel.open:
                tunnel.close(anyio.current_time())
            if not self._writing:
                transport.send_now(b"".join(tunnel.bytes_to_send()))
            transport.close()
        for local in list(self._locals.values()):
            self._break(local, None)
        self._link.close()
        self._on_closed(self)

    # --- its connections ---------------------------------------------------------------------------------------------

    async def _want_connection(self) -> None:
        """Return when there is a connection.

        Raises:
            SandboxClientError: there is none, and no more tries.
        """
        if self._link.connected:
            return
        try:
            self._link.want(anyio.current_time())
        except LocalProtocolError as error:
            raise self._error or error from None
        self._work.set()
        while self._link.connecting:
            await self._news.wait()
        if not self._link.connected:
            raise self._error or LocalProtocolError("the tunnel is closed")

    async def _keep_connected(self) -> None:
        while True:
            due = self._link.connect_at()
            if due is None:
                self._work = anyio.Event()
                await self._work.wait()
                continue
            await anyio.sleep_until(due)
            await self._run_connection()
            self._wake()

    async def _run_connection(self) -> None:
        try:
            with anyio.fail_after(OPEN_SECONDS):
                transport = await self._connect()
        except TimeoutError:
            self._lost(SandboxConnectTimeoutError(f"the tunnel was not connected within {OPEN_SECONDS:g} s"))
            return
        except SandboxClientError as error:
            self._lost(error)
            return
        tunnel = self._link.begin()
        self._tunnel, self._transport, self._writing = tunnel, transport, False
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._write, transport, tunnel)
                group.start_soon(self._keep_time, transport, tunnel)
                self._flush()
                await self._read(transport, tunnel)
                group.cancel_scope.cancel()
        finally:
            transport.close()
            self._tunnel = self._transport = None
            self._writing = False
            self._wake_room()

    async def _read(self, transport: Transport, tunnel: ClientTunnel) -> None:
        closed: TunnelClosed | None = None
        while closed is None:
            data = await transport.receive()
            now = anyio.current_time()
            if data:
                tunnel.receive_bytes(data, now)
            else:
                tunnel.receive_eof(now)
            closed = self._dispatch(tunnel)
            self._flush()

    async def _keep_time(self, transport: Transport, tunnel: ClientTunnel) -> None:
        """Do what is due: first the upgrade, then pings."""
        due = anyio.current_time() + OPEN_SECONDS
        while not tunnel.finished:
            await anyio.sleep_until(due)
            now = anyio.current_time()
            if not tunnel.open:
                transport.close()  # the reader sees an end
                return
            tunnel.receive_timeout(now)
            if self._dispatch(tunnel) is not None:
                self._flush()
                transport.close()
                return
            self._flush()
            due = max(min(tunnel.deadline() or math.inf, now + OPEN_SECONDS), now + 0.01)

    async def _write(self, transport: Transport, tunnel: ClientTunnel) -> None:
        """Send what did not go at once."""
        while True:
            while not self._writing:
                self._unsent = anyio.Event()
                await self._unsent.wait()
            alive = await transport.finish_send()
            while alive and (out := tunnel.bytes_to_send()):
                alive = await transport.send(b"".join(out))
            self._writing = False
            self._wake_room()
            if not alive:
                transport.close()
                return

    def _flush(self) -> None:
        """Send what goes now; the writer sends the rest, and whatever comes meanwhile."""
        tunnel, transport = self._tunnel, self._transport
        if self._writing or tunnel is None or transport is None:
            return
        out = tunnel.bytes_to_send()
        if out and not transport.start_send(b"".join(out)):
            self._writing = True
            self._unsent.set()

    def _dispatch(self, tunnel: ClientTunnel) -> TunnelClosed | None:
        closed: TunnelClosed | None = None
        for event in tunnel.events():
            if isinstance(event, TunnelOpened):
                self._link.opened()
                self._wake()
            elif isinstance(event, TunnelClosed):
                closed = event
                self._lost(error_of_loss(event.reason, event.refused), event)
            elif (local := self._locals.get(event.stream_id)) is None:
                if isinstance(event, StreamData):
                    tunnel.consume(event.stream_id, len(event.data))
            elif isinstance(event, StreamData):
                self._deliver(tunnel, local, event.data)
            elif isinstance(event, StreamWritable):
                local.wake()
            elif isinstance(event, StreamConnected):
                local.status = True
                local.wake()
            elif isinstance(event, StreamEnded):
                local.ended = True
                self._end_if_drained(local)
            elif isinstance(event, StreamRefused):
                self._counts["refused"] += 1
                self._break(local, error_of_status(event.status, self._target))
            else:
                assert isinstance(event, StreamReset)
                self._break(local, None)
        return closed

    def _lost(self, error: SandboxClientError, closed: TunnelClosed | None = None) -> None:
        self._error = self._last_error = error
        refused = closed.refused if closed is not None else None
        self._link.lost(str(error), anyio.current_time(), chance=random.random(), refused=refused)
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()

    def _wake_room(self) -> None:
        room, self._room = self._room, anyio.Event()
        room.set()

    # --- local connections -------------------------------------------------------------------------------------------

    async def _accept(self) -> None:
        assert self._group is not None
        while True:
            try:
                await anyio.wait_readable(self._listener)
                sock, _ = self._listener.accept()
            except BlockingIOError:
                continue
            except (OSError, anyio.ClosedResourceError) as error:
                if self._listener.fileno() < 0:
                    return
                _log.warning("a connection to the tunnel's local port could not be accepted: %s", error)
                await anyio.sleep(0.1)  # mostly there are no descriptors left: let some be closed
                continue
            self._group.start_soon(self._serve, sock)

    async def _serve(self, sock: socket.socket) -> None:
        local = LocalConnection(sock)
        self._counts["open"] += 1
        self._counts["total"] += 1
        try:
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._open(local)
            with local.scope:
                await self._pump(local, sock)
                while not (local.over or (local.ended and not local.queue)):
                    await local.changed.wait()
        except SandboxClientError as error:
            local.over = True
            self._last_error = error
            _log.warning("a local connection was closed: %s", error)
        finally:
            self._counts["open"] -= 1
            self._drop(local)
            if local.error is not None:
                self._last_error = local.error
                _log.warning("a local connection was closed: %s", local.error)
            if not local.over and local.ended and not local.queue:
                sock.close()
            else:
                break_off(sock)

    async def _open(self, local: LocalConnection) -> None:
        """Open a stream for a local connection, once there is a connection."""
        await self._want_connection()
        tunnel = self._tunnel
        assert tunnel is not None
        try:
            local.stream_id = tunnel.open_stream(self._target, anyio.current_time())
        except LocalProtocolError as error:
            raise TunnelError(str(error)) from None
        self._locals[local.stream_id] = local
        self._flush()

    async def _pump(self, local: LocalConnection, sock: socket.socket) -> None:
        """Take what the program sends until it ends, no faster than the stream and the connection take it."""
        more = False
        tunnel = self._tunnel
        while tunnel is not None and tunnel.has_stream(local.stream_id):
            window = tunnel.send_window(local.stream_id)
            if not window:
                await local.changed.wait()
                continue
            if self._writing:
                await self._room.wait()
                continue
            if more:
                await checkpoint()  # before reading: what has been read cannot be lost to a cancellation
            else:
                await anyio.wait_readable(sock)
            if not tunnel.has_stream(local.stream_id):
                return
            data, more = try_read(sock, window)
            if data is None:
                continue
            if data:
                self._counts["sent"] += len(data)
                tunnel.send_data(local.stream_id, data)
                self._flush()
                continue
            if more:  # it broke its connection off
                self._break(local, None)
            else:
                tunnel.end_stream(local.stream_id)
                self._flush()
            return

    def _deliver(self, tunnel: ClientTunnel, local: LocalConnection, data: memoryview) -> None:
        self._counts["received"] += len(data)
        if local.socket is None or local.over:
            tunnel.consume(local.stream_id, len(data))
            return
        sent = 0 if local.queue else try_write(local.socket, data)
        if sent:
            tunnel.consume(local.stream_id, sent)
        if sent < 0:
            self._break(local, None)
        elif sent < len(data):
            local.queue.append(bytes(data[sent:]))
            if not local.draining:
                local.draining = True
                assert self._group is not None
                self._group.start_soon(self._drain, tunnel, local)

    async def _drain(self, tunnel: ClientTunnel, local: LocalConnection) -> None:
        """Hand the program what it did not take at once."""
        assert local.socket is not None
        try:
            while local.queue and not local.over:
                await anyio.wait_writable(local.socket)
                if local.over:
                    return
                data = local.queue[0]
                sent = try_write(local.socket, data)
                if sent < 0:
                    self._break(local, None)
                    return
                if sent < len(data):
                    local.queue[0] = data[sent:]
                else:
                    local.queue.popleft()
                tunnel.consume(local.stream_id, sent)
                self._flush()
        except (OSError, anyio.ClosedResourceError):
            self._break(local, None)
        finally:
            local.draining = False
        if local.ended:
            self._end_if_drained(local)

    def _end_if_drained(self, local: LocalConnection) -> None:
        """Pass the end of the stream on, once the program has taken everything before it."""
        if not local.queue:
            if local.socket is not None:
                end(local.socket)
            local.wake()

    def _break(self, local: LocalConnection, error: TunnelError | None) -> None:
        """The stream, or its local connection, was broken off: so is the other."""
        local.over = True
        local.error = local.error or error
        local.queue.clear()
        local.wake()
        local.scope.cancel()

    def _drop(self, local: LocalConnection) -> None:
        """Forget a local connection; its stream is reset unless it is over."""
        if self._locals.get(local.stream_id) is local:
            del self._locals[local.stream_id]
            tunnel = self._tunnel
            if tunnel is not None and tunnel.has_stream(local.stream_id):
                tunnel.reset_stream(local.stream_id)
                self._flush()
