"""Streams under the router, at their end."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from sandbox_aio.server.streams import Stream

pytestmark = pytest.mark.anyio


async def test_closing_gently_a_connection_that_was_just_reset_is_no_failure() -> None:
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[Stream] = loop.create_future()
    server = await loop.create_server(lambda: Stream(accepted.set_result), "127.0.0.1", 0)
    async with server:
        with socket.create_connection(server.sockets[0].getsockname()) as client:
            stream = await accepted
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.close_gently()
