"""Reads the head of one request after the other, on a public connection and on a sandbox's connection to its proxy."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import h11

from .errors import ApiError
from .head_bytes import check_head_bytes
from .limits import HEAD_TIMEOUT, IDLE_TIMEOUT

if TYPE_CHECKING:
    from .streams import Stream

__all__ = ["read_request"]


async def read_request(connection: h11.Connection, stream: Stream) -> h11.Request | None:
    """The next request's head; None when there will be none, since the client has left or is idle for too long.

    Raises ApiError for what is no request, or takes too long to become one.
    """
    try:
        received = bytearray(connection.trailing_data[0])
        event = connection.next_event()
        if event is h11.NEED_DATA:
            async with asyncio.timeout(IDLE_TIMEOUT):
                data = await stream.receive()
            async with asyncio.timeout(HEAD_TIMEOUT):
                while event is h11.NEED_DATA:
                    received += data
                    connection.receive_data(data)
                    event = connection.next_event()
                    if event is h11.NEED_DATA:
                        data = await stream.receive()
    except TimeoutError:
        if not connection.trailing_data[0]:
            return None  # Idle: nothing was asked, so nothing is answered.
        raise ApiError(408, "RequestTimeout", f"the request's head took longer than {HEAD_TIMEOUT:g} s") from None
    except h11.RemoteProtocolError as problem:
        raise ApiError(problem.error_status_hint, "InvalidRequest", str(problem)[:256]) from problem
    if not isinstance(event, h11.Request):
        return None
    check_head_bytes(bytes(received[: len(received) - len(connection.trailing_data[0])]))
    return event
