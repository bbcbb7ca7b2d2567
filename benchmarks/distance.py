"""A proxy that holds every byte back for a while in either direction, and none for its neighbours' sake.

`python -m benchmarks.distance PORT SECONDS` listens on a port of 127.0.0.1 that it prints, leads to `PORT`, and ends
when its standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Final

HELD: Final = 64 << 20
"""Bytes under way in one direction, beyond which no more are taken: a long way holds much, but not everything."""


class Side(asyncio.Protocol):
    """One end of a connection; what it receives leaves at the other after `delay` seconds."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.other: Side | None = None
        self.transport: asyncio.Transport | None = None
        self.held = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.held += len(data)
        assert self.transport is not None
        if self.held > HELD:
            self.transport.pause_reading()
        asyncio.get_running_loop().call_later(self.delay, self._pass_on, data)

    def eof_received(self) -> bool:
        asyncio.get_running_loop().call_later(self.delay, self._pass_end)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        asyncio.get_running_loop().call_later(self.delay, self._pass_loss)

    def _pass_on(self, data: bytes) -> None:
        self.held -= len(data)
        if self.transport is not None and self.held < HELD // 2:
            self.transport.resume_reading()
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def _pass_end(self) -> None:
        if self.other is not None and self.other.transport is not None and not self.other.transport.is_closing():
            with contextlib.suppress(OSError):  # it has gone already
                self.other.transport.write_eof()

    def _pass_loss(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


async def main(port: int, delay: float) -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()

    class Client(Side):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            transport.pause_reading()  # type: ignore[attr-defined]
            tasks.add(task := loop.create_task(self._connect()))
            task.add_done_callback(tasks.discard)

        async def _connect(self) -> None:
            self.other = far = Side(delay)
            far.other = self
            await loop.create_connection(lambda: far, "127.0.0.1", port)
            assert self.transport is not None
            self.transport.resume_reading()

    tasks: set[asyncio.Task[None]] = set()
    server = await loop.create_server(lambda: Client(delay), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
