"""A connection that has become a raw one: every byte goes to a port of the sandbox, and back."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
from typing import TYPE_CHECKING

from ..protocol.tunnel_preamble import TunnelTarget
from .faults import Fault
from .ports import DialError, dial

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

__all__ = ["RawConnection", "break_off", "dial_for"]

MAX_PATIENCE = 5.0
"""Seconds during which a port that refuses may be tried again."""
_BUFFER_BYTES = 256 * 1024
"""What either side may owe the other before the other is no longer read."""


async def dial_for(query: Mapping[str, str]) -> socket.socket:
    """Dial what the query of `/connect` names: `port` or `path`, and `patience`, which is 0 by default.

    Raises:
        Fault: 400 for what is no target, 502 `ConnectionRefused` when nothing could be reached.
    """
    try:
        port = query.get("port")
        target = TunnelTarget(port=None if port is None else int(port), path=query.get("path"))
        patience = float(query.get("patience", "0"))
    except ValueError as error:
        raise Fault(400, "InvalidRequest", str(error)) from None
    if not (math.isfinite(patience) and 0 <= patience <= MAX_PATIENCE):
        raise Fault(400, "InvalidRequest", f"patience is a number of seconds from 0 to {MAX_PATIENCE:g}")
    try:
        return await dial(target, patience)
    except DialError as error:
        raise Fault(502, "ConnectionRefused", str(error)) from None


def break_off(transport: asyncio.Transport) -> None:
    """Close such that the peer sees a reset, if the transport can show one, and not an end."""
    if transport.get_extra_info("socket").family != socket.AF_UNIX:
        with contextlib.suppress(OSError):  # the peer has gone already
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class RawConnection(asyncio.Protocol):
    """One of the two sides. What it receives goes to the other; so do its end, its loss and its slowness."""

    def __init__(self, connections: MutableMapping[asyncio.BaseTransport, asyncio.Protocol]) -> None:
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._other: RawConnection
        self._ended = False

    @classmethod
    async def join(
        cls, target: socket.socket, connections: MutableMapping[asyncio.BaseTransport, asyncio.Protocol]
    ) -> RawConnection:
        """Return the client's side, which begins when its transport is given to it, joined to the socket dialled."""
        client, service = cls(connections), cls(connections)
        client._other, service._other = service, client
        try:
            await asyncio.get_running_loop().create_connection(lambda: service, sock=target)
        except BaseException:
            target.close()
            raise
        assert service._transport is not None
        service._transport.pause_reading()  # until there is somewhere to write to
        return client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections[transport] = self
        transport.set_write_buffer_limits(high=_BUFFER_BYTES)
        if hasattr(self, "_other") and (other := self._other._transport) is not None:
            other.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        if (other := self._other._transport) is not None:
            other.write(data)

    def eof_received(self) -> bool:
        """Pass the end on; the other direction goes on."""
        self._ended = True
        other = self._other._transport
        if other is None or self._other._ended:
            return False
        with contextlib.suppress(OSError):  # it reset its connection a moment ago
            other.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """End the other side as well: after what it is owed, or at once if this one was cut off."""
        transport, self._transport = self._transport, None
        assert transport is not None
        self._connections.pop(transport, None)
        if (other := self._other._transport) is not None:
            if exc is None and self._ended:
                other.close()
            else:
                break_off(other)

    def pause_writing(self) -> None:
        """This side is slow: read the other no further."""
        if (other := self._other._transport) is not None:
            other.pause_reading()

    def resume_writing(self) -> None:
        """It has caught up."""
        if (other := self._other._transport) is not None:
            other.resume_reading()
