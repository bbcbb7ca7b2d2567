"""A TCP proxy in a thread of its own that treats connections as a bad network does, the same way for the same seed.

Each direction of each connection has a plan: at some offsets it is delayed, stalls, trickles in tiny pieces or is slow
and many connections are broken off in the middle: ended, reset, or reset on one side long before the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FaultyWire", "faulty_wire"]

_PIECE: Final = 65536
_HARMLESS: Final = ("delay", "stall", "trickle", "throttle")
_FATAL: Final = ("end", "reset", "reset to the client first", "reset to the server first")
_LATER_SECONDS: Final = 0.5
"""How long after one side of a connection the other one hears of a reset."""
_FATAL_SHARE: Final = 0.6
"""How many connections do not survive."""


class _EndedError(Exception):
    """Both sides of a connection are to be ended as if nothing was wrong."""


@attrs.define
class _Plan:
    """What happens to one direction: offsets in rising order, and the fault at each."""

    faults: list[tuple[int, str]]
    offset: int = 0


class FaultyWire:
    """The proxy, while it runs. Its methods may be called from any thread."""

    def __init__(self, target: int, seed: int, *, first_whole: int) -> None:
        """Proxy to a port of 127.0.0.1. The first connection survives `first_whole` bytes."""
        self.seed: int = seed
        self.port: int = 0
        """Where it listens, at 127.0.0.1."""
        self.met: list[str] = []
        """The faults so far, as `connection direction offset fault`."""
        self._target = target
        self._first_whole = first_whole
        self._healed = False
        self._count = 0
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._loop: asyncio.AbstractEventLoop
        self._ready = threading.Event()
        self._over: asyncio.Event

    def heal(self) -> None:
        """Do nothing to connections any more."""
        self._healed = True

    def cut(self) -> None:
        """Reset all connections; return when that is done."""
        asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result()

    def stop(self) -> None:
        """Reset all connections and accept no more."""
        self._loop.call_soon_threadsafe(self._over.set)

    def run(self) -> None:
        """Serve until `stop`, in a thread for this alone."""
        asyncio.run(self._run())

    def wait_until_ready(self) -> None:
        """Return once it listens."""
        assert self._ready.wait(10)

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = self._loop.create_task(self._serve(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        await self._cut()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _cut(self) -> None:
        for pair in tuple(self._pairs):
            for writer in pair:
                _reset(writer)

    def _plans(self, number: int) -> tuple[_Plan, _Plan]:
        chance = random.Random(f"{self.seed} {number}")
        plans = _Plan([]), _Plan([])
        for plan in plans:
            for _ in range(chance.randrange(6)):
                plan.faults.append((int(chance.expovariate(1 / 100_000)), chance.choice(_HARMLESS)))
        if chance.random() < _FATAL_SHARE:
            offset = int(chance.expovariate(1 / 300_000)) + (self._first_whole if number == 0 else 0)
            chance.choice(plans).faults.append((offset, chance.choice(_FATAL)))
        for plan in plans:
            plan.faults.sort()
        return plans

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self._count = self._count, self._count + 1
        try:
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            _reset(writer)
            return
        pair = (writer, target_writer)
        self._pairs.add(pair)
        up, down = self._plans(number)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(f"{number} up", reader, target_writer, up, pair))
                group.create_task(self._pump(f"{number} down", target_reader, writer, down, pair))
        except* _EndedError:
            pass
        except* OSError:
            for end in pair:
                _reset(end)
        finally:
            self._pairs.discard(pair)
            for end in pair:
                end.transport.abort()

    async def _pump(
        self,
        name: str,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        plan: _Plan,
        pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
    ) -> None:
        while data := await source.read(_PIECE):
            rest = memoryview(data)
            while rest:
                size = len(rest)
                if plan.faults and not self._healed:
                    at, fault = plan.faults[0]
                    if at <= plan.offset:
                        plan.faults.pop(0)
                        self.met.append(f"{name} {plan.offset} {fault}")
                        await _suffer(fault, rest, sink, pair)
                        if fault in ("trickle", "throttle"):
                            plan.offset += len(rest)
                            break
                        continue
                    size = min(size, at - plan.offset)
                sink.write(bytes(rest[:size]))
                await sink.drain()
                plan.offset += size
                rest = rest[size:]
        if not any(end.transport.is_closing() for end in pair):
            sink.write_eof()


async def _suffer(
    fault: str,
    rest: memoryview,
    sink: asyncio.StreamWriter,
    pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
) -> None:
    """Let a fault happen; what trickles or is throttled is all of `rest`.

    Raises:
        _EndedError: both sides are ended.
        ConnectionAbortedError: both sides are reset.
    """
    client, server = pair
    if fault == "delay":
        await asyncio.sleep(0.02)
    elif fault == "stall":
        await asyncio.sleep(0.3)
    elif fault == "trickle":
        for index in range(min(len(rest), 200)):
            sink.write(bytes(rest[index : index + 1]))
            await asyncio.sleep(0)
        sink.write(bytes(rest[200:]))
    elif fault == "throttle":
        for index in range(0, len(rest), 4096):
            sink.write(bytes(rest[index : index + 4096]))
            await asyncio.sleep(0.002)
    elif fault == "end":
        raise _EndedError
    else:
        order = (server, client) if fault == "reset to the server first" else (client, server)
        _reset(order[0])
        if fault != "reset":
            await asyncio.sleep(_LATER_SECONDS)
        raise ConnectionAbortedError


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):  # it is closed already
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextlib.contextmanager
def faulty_wire(target: int, seed: int, *, first_whole: int = 4096) -> Iterator[FaultyWire]:
    """Run a proxy to a port of 127.0.0.1 until the block ends; a test that fails shows the seed and what happened."""
    wire = FaultyWire(target, seed, first_whole=first_whole)
    thread = threading.Thread(target=wire.run, name="faulty wire")
    thread.start()
    wire.wait_until_ready()
    try:
        yield wire
    finally:
        wire.stop()
        thread.join(10)
        print(f"seed {seed}:", *wire.met, sep="\n    ")
