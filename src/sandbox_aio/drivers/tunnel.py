"""Runs one tunnel: a `TunnelLink` and its connections on one side, `LocalSide` on the other.

One task reads the tunnel's connection and hands what it brings to the local programs; another serves those. Whoever has
something to send sends what goes at once, and a writer's task sends the rest: meanwhile no local program is read.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import anyio

from ..errors import LocalProtocolError, SandboxClientError, SandboxConnectTimeoutError, TunnelError
from ..models import TunnelStatistics
from ..protocol.tunnel import StreamConnected, StreamRefused, TunnelClosed, TunnelOpened
from ..protocol.tunnel_errors import error_of_loss, error_of_status
from ..protocol.yamux_events import StreamData, StreamEnded, StreamReset, StreamWritable
from .local_side import LocalConnection, LocalSide
from .scopes import single_error

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup, TaskStatus

    from ..protocol.tunnel import ClientTunnel, TunnelEvent
    from ..protocol.tunnel_link import TunnelLink
    from ..protocol.tunnel_preamble import TunnelTarget
    from .transport import Transport

__all__ = ["TunnelDriver"]

OPEN_SECONDS: Final = 30.0
"""How long one connection may take to be made, upgrade included."""
MAX_WAITING: Final = 1024
"""Local connections that wait for the tunnel to connect anew."""


class _Probe:
    """A stream that only asks whether its target accepts."""

    def __init__(self) -> None:
        self.answered = anyio.Event()
        self.error: SandboxClientError | None = None


class TunnelDriver:
    """The tasks of one tunnel.

    Args:
        link: The core.
        target: Where every stream leads.
        connect: Opens a transport, or raises a `SandboxClientError`. The driver bounds its time.
        listener: Listens on this machine; the driver closes it.
        on_closed: Called when the tunnel is closed, perhaps more than once.
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
        self._on_closed = on_closed
        self._local = LocalSide(listener, self)
        self._streams: dict[int, LocalConnection | _Probe] = {}
        self._waiting: list[LocalConnection] = []
        """Local connections that came while there was no connection."""
        self._tunnel: ClientTunnel | None = None
        self._transport: Transport | None = None
        self._group: TaskGroup | None = None
        self._scope = anyio.CancelScope()
        self._closed = anyio.Event()
        self._news = anyio.Event()
        self._wanted = anyio.Event()
        self._unsent = anyio.Event()
        self._room = anyio.Event()
        self.blocked: bool = False
        """See `Streams.blocked`. What did not go at once is being sent."""
        self._refused = 0
        self._error: SandboxClientError | None = None
        """Why there is no connection."""
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
                    await self._local.serve()
        finally:
            self.close()
            self._closed.set()

    def close(self) -> None:
        """Listen no more, say goodbye, and end every task; `wait_closed` waits for that. Closing again does nothing."""
        self._local.close()
        tunnel, transport = self._tunnel, self._transport
        self._tunnel = self._transport = None
        if tunnel is not None and transport is not None:
            tunnel.close(anyio.current_time())
            if not self.blocked:
                transport.send_now(b"".join(tunnel.bytes_to_send()))
            transport.close()
        self._link.close()
        self._error = LocalProtocolError("the tunnel is closed")
        self._forget_streams()
        self._tell()
        self._scope.cancel()
        self._on_closed(self)

    async def wait_closed(self) -> None:
        """Wait until no task of the tunnel is left."""
        await self._closed.wait()

    def statistics(self) -> TunnelStatistics:
        """Count what has passed so far."""
        return TunnelStatistics(
            open_connections=len(self._local.connections),
            total_connections=self._local.total,
            refused_connections=self._refused,
            bytes_sent=self._local.bytes_sent,
            bytes_received=self._local.bytes_received,
            reconnects=self._link.reconnects,
            last_error=self._last_error,
        )

    async def check(self) -> None:
        """See whether the target accepts a connection.

        Raises:
            TunnelError: it does not; the subclass says why.
            SandboxClientError: the tunnel's connection is lost and could not be made anew.
            LocalProtocolError: the tunnel is closed, or was meanwhile.
        """
        await self._want_connection()
        probe = _Probe()
        stream_id = self._open_stream(probe)
        self.flush()
        try:
            await probe.answered.wait()
        finally:
            if self._streams.get(stream_id) is probe:
                self._drop_stream(stream_id)
                self.flush()
        if probe.error is not None:
            raise probe.error

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
        self._wanted.set()
        while self._link.connecting:
            await self._news.wait()
        if not self._link.connected:
            raise self._error or LocalProtocolError("the tunnel is closed")

    async def _keep_connected(self) -> None:
        while True:
            due = self._link.connect_at()
            if due is None:
                self._wanted = anyio.Event()
                await self._wanted.wait()
                continue
            await anyio.sleep_until(due)
            await self._run_connection()
            self._tell()

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
        if self._scope.cancel_called:  # closed in the turn that brought the connection
            transport.close()
            return
        tunnel = self._link.begin()
        self._tunnel, self._transport = tunnel, transport
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._write, transport, tunnel)
                group.start_soon(self._keep_time, transport, tunnel)
                self.flush()
                await self._read(transport, tunnel)
                group.cancel_scope.cancel()
        finally:
            transport.close()
            self._tunnel = self._transport = None
            self._forget_streams()
            self.blocked = False
            self._make_room()

    async def _read(self, transport: Transport, tunnel: ClientTunnel) -> None:
        going_on = True
        while going_on:
            data = await transport.receive()
            now = anyio.current_time()
            if data:
                tunnel.receive_bytes(data, now)
            else:
                tunnel.receive_eof(now)
            going_on = self._dispatch(tunnel) and bool(data)  # the end comes without a word if a timeout said it before
            self.flush()

    async def _keep_time(self, transport: Transport, tunnel: ClientTunnel) -> None:
        """Do what is due: first give an upgrade up that takes too long, then ping."""
        due = anyio.current_time() + OPEN_SECONDS
        while True:
            await anyio.sleep_until(due)
            now = anyio.current_time()
            if not tunnel.open:
                break
            tunnel.receive_timeout(now)
            going_on = self._dispatch(tunnel)
            self.flush()
            if not going_on:
                break
            deadline = tunnel.deadline()
            due = now + OPEN_SECONDS if deadline is None else min(deadline, now + OPEN_SECONDS)
        transport.close()  # the reader sees an end

    async def _write(self, transport: Transport, tunnel: ClientTunnel) -> None:
        """Send what did not go at once."""
        alive = True
        while alive:
            while not self.blocked:
                self._unsent = anyio.Event()
                await self._unsent.wait()
            alive = await transport.finish_send()
            while alive and (out := tunnel.bytes_to_send()):
                alive = await transport.send(b"".join(out))
            self.blocked = False
            self._make_room()
        transport.close()

    def _dispatch(self, tunnel: ClientTunnel) -> bool:
        """Act on what happened; return whether the connection goes on."""
        for event in tunnel.events():
            if isinstance(event, StreamData):
                stream = self._streams.get(event.stream_id)
                if isinstance(stream, LocalConnection):
                    self._local.deliver(stream, event.data)
                else:
                    tunnel.consume(event.stream_id, len(event.data))
            elif isinstance(event, TunnelOpened):
                self._link.opened()
                self._tell()
            elif isinstance(event, TunnelClosed):
                self._lost(error_of_loss(event.reason, event.refused), event)
                return False
            else:
                self._dispatch_stream(event)
        return True

    def _dispatch_stream(self, event: TunnelEvent) -> None:
        assert isinstance(event, StreamConnected | StreamRefused | StreamWritable | StreamEnded | StreamReset)
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        error: TunnelError | None = None
        if isinstance(event, StreamRefused):
            self._refused += 1
            self._last_error = error = error_of_status(event.status, self._target)
        if isinstance(stream, _Probe):
            stream.error = error
            stream.answered.set()
        elif isinstance(event, StreamRefused | StreamReset):
            self._local.break_off(stream, error)
        elif isinstance(event, StreamEnded):
            self._local.end(stream)
        elif isinstance(event, StreamWritable):
            self._local.update(stream)

    def _lost(self, error: SandboxClientError, closed: TunnelClosed | None = None) -> None:
        if self._scope.cancel_called:
            return  # it was closed, which is no loss
        self._error = self._last_error = error
        refused = closed.refused if closed is not None else None
        self._link.lost(str(error), anyio.current_time(), chance=random.random(), refused=refused)
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()

    def _make_room(self) -> None:
        room, self._room = self._room, anyio.Event()
        room.set()

    # --- for the local side ------------------------------------------------------------------------------------------

    def opened(self, local: LocalConnection) -> None:
        """See `Streams.opened`."""
        if self._link.connected:
            self._attach(local)
            return
        if len(self._waiting) >= MAX_WAITING:
            self._last_error = error = TunnelError(f"{MAX_WAITING} connections wait already for the tunnel to connect")
            self._local.break_off(local, error)
            return
        self._waiting.append(local)
        if len(self._waiting) == 1:
            assert self._group is not None
            self._group.start_soon(self._reconnect)

    async def _reconnect(self) -> None:
        """Have a connection made for those that wait; without one, break them off."""
        error: SandboxClientError | None = None
        try:
            await self._want_connection()
        except SandboxClientError as failure:
            error = failure
        waiting, self._waiting = self._waiting, []
        for local in waiting:
            if error is not None:
                self._local.break_off(local, error)
            else:
                self._attach(local)
        self.flush()

    def _attach(self, local: LocalConnection) -> None:
        try:
            stream_id = self._open_stream(local)
        except TunnelError as error:
            self._last_error = error
            self._local.break_off(local, error)
        else:
            self._local.attach(local, stream_id)

    def _open_stream(self, stream: LocalConnection | _Probe) -> int:
        if self._tunnel is None:
            raise TunnelError("the tunnel has lost its connection")
        try:
            stream_id = self._tunnel.open_stream(self._target, anyio.current_time())
        except LocalProtocolError as error:
            raise TunnelError(str(error)) from None
        self._streams[stream_id] = stream
        return stream_id

    def window(self, stream_id: int) -> int:
        """See `Streams.window`."""
        return self._tunnel.send_window(stream_id) if self._tunnel is not None else 0

    def send(self, stream_id: int, data: memoryview) -> None:
        """See `Streams.send`."""
        assert self._tunnel is not None
        self._tunnel.send_data(stream_id, data)

    def end(self, stream_id: int) -> None:
        """See `Streams.end`."""
        assert self._tunnel is not None
        self._tunnel.end_stream(stream_id)

    def consumed(self, stream_id: int, size: int) -> None:
        """See `Streams.consumed`."""
        if self._tunnel is not None:
            self._tunnel.consume(stream_id, size)

    def dropped(self, local: LocalConnection) -> None:
        """See `Streams.dropped`."""
        if local.stream_id:
            self._drop_stream(local.stream_id)

    def _drop_stream(self, stream_id: int) -> None:
        self._streams.pop(stream_id, None)
        if self._tunnel is not None and self._tunnel.has_stream(stream_id):
            self._tunnel.reset_stream(stream_id)

    def _forget_streams(self) -> None:
        """The connection is gone. The next one counts its streams from 1 again, and none of them is one of these.

        Those of local connections that are left were over on both sides: the programs have yet to take what came.
        """
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            if isinstance(stream, LocalConnection):
                stream.stream_id = 0
            else:
                stream.error = stream.error or self._error
                stream.answered.set()

    def flush(self) -> None:
        """Send what goes now; the writer sends the rest, and whatever comes meanwhile."""
        tunnel, transport = self._tunnel, self._transport
        if self.blocked or tunnel is None or transport is None:
            return
        out = tunnel.bytes_to_send()
        if out and not transport.start_send(b"".join(out)):
            self.blocked = True
            self._unsent.set()

    async def room(self) -> None:
        """See `Streams.room`."""
        while self.blocked:
            await self._room.wait()
