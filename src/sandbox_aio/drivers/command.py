"""Runs one `ClientCommand` over transports: opens them, moves bytes, keeps the time.

What any of it means is the core's affair.

`step` does one thing at a time, so that either a task of its own (`pump`) or the consumer itself can be the reader.
There is never more than one reader and one writer. Nothing is lost by cancelling a `step`: what arrived is in the
core or in the queue.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

import anyio

from ..errors import SandboxClientError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..protocol.command import ClientCommand
    from ..protocol.events import CommandEvent
    from .transport import Transport

__all__ = ["READ_AHEAD_BYTES", "CommandDriver"]

READ_AHEAD_BYTES = 1_048_576
"""How much output a background reader takes that no consumer has taken yet.

Then it stops reading, and the peer is held back.
"""

_DISCARD_POLL = 1.0


class CommandDriver:
    """The connections of one command.

    Args:
        command: The core; the driver begins it.
        connect: Opens a transport, or raises a `SandboxClientError`. The driver bounds its time.
        on_finished: Called, perhaps more than once, when the command is over and its connection is closed.
    """

    def __init__(
        self,
        command: ClientCommand,
        connect: Callable[[], Awaitable[Transport]],
        on_finished: Callable[[CommandDriver], None] = lambda driver: None,
    ) -> None:
        self.command = command
        self.abandoned = False
        """Set when nobody will ever take the output: it is read and thrown away."""
        self._connect = connect
        self._on_finished = on_finished
        self._transport: Transport | None = None
        self._gate = anyio.Lock(fast_acquire=True)
        self._reader = anyio.Lock(fast_acquire=True)
        self._pumping = False
        self._queue: deque[list[CommandEvent]] = deque()
        self._queued_bytes = 0
        self._news = anyio.Event()
        self._room = anyio.Event()
        self._wait: anyio.CancelScope | None = None
        self._begun = False

    @property
    def finished(self) -> bool:
        """Whether no more will happen. Batches may still be queued."""
        return self.command.finished and self._transport is None

    # --- for consumers ------------------------------------------------------------------------------------------------

    async def next_batch(self) -> list[CommandEvent]:
        """Return what happened since the last call, in order, waiting for something; empty when all is said.

        Cancelling loses nothing. Where no task pumps, the caller is the reader meanwhile.
        """
        while True:
            if self._queue:
                return self._take()
            if self.finished:
                return []
            if self._pumping:
                news = self._news
                await news.wait()
                continue
            await self._read(self._idle)

    async def read_once(self) -> None:
        """Do one step as the reader, where no task pumps and the caller waits for something else than output."""
        steps = iter((True, False))
        await self._read(lambda: not self.finished and not self._pumping and next(steps))

    async def _read(self, wanted: Callable[[], bool]) -> None:
        """Step as long as it is wanted, once nobody else reads. Afterwards nobody does."""
        async with self._reader:
            if not wanted():
                return
            self.command.resume_reading(anyio.current_time())
            try:
                await self.step()
                while wanted():
                    await self.step()
            finally:
                self.command.pause_reading(anyio.current_time())

    def _idle(self) -> bool:
        return not (self._queue or self.finished or self._pumping)

    def _take(self) -> list[CommandEvent]:
        batch = self._queue.popleft()
        if not self._queue:
            self._queued_bytes = 0
            self._room.set()
        return batch

    # --- the reader --------------------------------------------------------------------------------------------------

    async def pump(self) -> None:
        """Read until the command is over, as the task of its own that answers pings while no consumer reads."""
        self._pumping = True
        self._wake()
        try:
            async with self._reader:
                self.command.resume_reading(anyio.current_time())
                while not self.finished:
                    if self._is_full():
                        await self._wait_for_room()
                    else:
                        await self.step()
        finally:
            self._pumping = False
            self._wake()

    async def step(self) -> None:
        """Do one thing: connect, send, receive, wait for an instant, or close."""
        command = self.command
        if not self._begun:
            self._begun = True
            command.begin(anyio.current_time())
        if command.wants_connection:
            await self._open()
        elif self._transport is None:
            await self._sleep()
        elif command.wants_close:
            self._hang_up()
        else:
            await self._receive(self._transport)
        self._deliver(0)
        if self.finished:
            self._on_finished(self)

    async def _open(self) -> None:
        command = self.command
        with self._until_deadline() as scope:
            try:
                transport = await self._connect()
            except SandboxClientError as exc:
                command.connection_failed(exc, anyio.current_time())
                return
            if not command.wants_connection:  # released meanwhile
                transport.close()
                return
            self._transport = transport
            command.connection_made(anyio.current_time())
        if scope.cancelled_caught:
            command.receive_timeout(anyio.current_time())
        else:
            await self._send()

    async def _receive(self, transport: Transport) -> None:
        command = self.command
        with self._until_deadline() as scope:
            data = await transport.receive()
        now = anyio.current_time()
        if scope.cancelled_caught:
            command.receive_timeout(now)
        elif data:
            command.receive_bytes(data, now)
            self._deliver(len(data))
        else:
            command.receive_eof(now)
        if command.wants_close:
            self._hang_up()
        elif self._gate.locked():  # the writer sends this too; a reader that waited for it might wait for itself
            self._rearm()
        else:
            await self._send()

    async def _sleep(self) -> None:
        with self._until_deadline() as scope:
            await anyio.sleep_forever()
        if scope.cancelled_caught:
            self.command.receive_timeout(anyio.current_time())

    async def _wait_for_room(self) -> None:
        """Let the consumer catch up. Meanwhile the peer's silence means nothing, since nothing is read."""
        command = self.command
        command.pause_reading(anyio.current_time())
        try:
            while self._is_full():
                if self.abandoned:
                    self._queue.clear()
                    self._queued_bytes = 0
                    break
                self._room = anyio.Event()
                with self._until_deadline(_DISCARD_POLL):
                    await self._room.wait()
                command.receive_timeout(anyio.current_time())
                if not self._gate.locked():
                    await self.flush()
        finally:
            command.resume_reading(anyio.current_time())

    def _is_full(self) -> bool:
        """Whether to read no more for now. A kill that waits for a new connection cannot wait for the consumer too."""
        command = self.command
        return self._queued_bytes >= READ_AHEAD_BYTES and not command.finished and not command.kill_pending

    def _deliver(self, size: int) -> None:
        events = self.command.events()
        if not events:
            return
        if not self.abandoned:
            self._queue.append(events)
            self._queued_bytes += size
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()

    def _until_deadline(self, at_most: float = math.inf) -> anyio.CancelScope:
        deadline = self.command.deadline()
        if deadline is None:
            deadline = math.inf
        if at_most < math.inf:
            deadline = min(deadline, anyio.current_time() + at_most)
        self._wait = anyio.CancelScope(deadline=deadline)
        return self._wait

    # --- the writer --------------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Send what the core wants sent, and let the reader know of a nearer deadline.

        If a send is cancelled half-way, the connection is given up; the core then attaches anew.
        """
        await self._send()
        self._rearm()

    async def _send(self) -> None:
        async with self._gate:
            transport = self._transport
            while transport is not None and not self.command.finished:
                out = self.command.bytes_to_send()
                if not out:
                    break
                try:
                    alive = await transport.send(out[0] if len(out) == 1 else b"".join(out))
                except BaseException:
                    transport.close()
                    raise
                if not alive:
                    transport.close()
                    break

    async def kill(self) -> None:
        """Send the kill that the core was told of. Input that blocks the connection is given up for it."""
        transport = self._transport
        if transport is not None and self._gate.locked():
            transport.close()
        self._rearm()
        await self.flush()

    def _rearm(self) -> None:
        wait, deadline = self._wait, self.command.deadline()
        if wait is not None and deadline is not None and deadline < wait.deadline:
            wait.deadline = deadline

    def _hang_up(self) -> None:
        """Close the transport, with what the core still has to say if that goes at once."""
        transport, self._transport = self._transport, None
        if transport is not None:
            out = self.command.bytes_to_send()
            if out and not self._gate.locked():
                transport.send_now(b"".join(out))
            transport.close()

    def release(self) -> None:
        """Let go of the command and of the connection, at once. Later calls do nothing."""
        if not self.command.finished:
            self.command.release(anyio.current_time())
        self._hang_up()
        self._deliver(0)
        self._room.set()
        if self._wait is not None:
            self._wait.deadline = -math.inf
        self._wake()
        self._on_finished(self)
