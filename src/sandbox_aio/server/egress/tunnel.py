"""Two connections whose bytes go to each other as they are."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..streams import Stream
    from .request_log import RequestRecord

__all__ = ["TUNNEL_IDLE", "join"]

TUNNEL_IDLE: Final = 900.0
"""Seconds in which nothing comes from either side, after which a tunnel is closed."""


async def join(client: Stream, origin: Stream, first: bytes, record: RequestRecord) -> None:
    """Pass bytes both ways until both sides have ended, or one is lost; `first` is what the client has sent already.

    Each side is read no faster than the other takes it, and may end its own half. Cancellation: returns at once; the
    caller closes both.
    """
    loop = asyncio.get_running_loop()
    patience = asyncio.timeout(TUNNEL_IDLE)

    async def pump(source: Stream, sink: Stream, data: bytes = b"") -> None:
        while data or (data := await source.receive()):
            patience.reschedule(loop.time() + TUNNEL_IDLE)
            if source is client:
                record.sent += len(data)
            else:
                record.received += len(data)
            await sink.send(data)
            data = b""
        if source.lost or sink.lost or not sink.transport.can_write_eof():
            raise ConnectionAbortedError
        sink.transport.write_eof()

    try:
        async with patience, asyncio.TaskGroup() as pumps:
            pumps.create_task(pump(client, origin, first))
            pumps.create_task(pump(origin, client))
    except* OSError:
        pass  # One side is gone, or nothing came for too long: the other goes as well.
