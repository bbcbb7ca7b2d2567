"""Cancelling at every await: what waits is killed, what reads loses nothing, and nothing is left."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from sandbox_aio.client.command import run_command, start_command
from sandbox_aio.protocol.frames import Execute, Kill, Started
from tests.client.checkpoints import cancel_at
from tests.scripted_daemon import Connection, Daemon, Owner, execute

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from sandbox_aio.client.command import AsyncCommandHandle, CommandSite

pytestmark = pytest.mark.anyio


class Runs:
    """Commands that end when they are killed, or soon after, and what became of each."""

    def __init__(self) -> None:
        self.executed = 0
        self.ended = 0

    async def script(self, connection: Connection) -> None:
        """Start, say something, wait for the kill."""
        frame = await connection.receive()
        if frame is None:
            return
        assert isinstance(frame, Execute)
        self.executed += 1
        assert frame.command_id is not None
        await connection.send(Started(command_id=frame.command_id, pid=7))
        await connection.output("hello", 0)
        killed = False
        with anyio.move_on_after(0.1) as scope:
            while (wish := await connection.receive()) is not None:
                if isinstance(wish, Kill):
                    killed = True
                    break
        if killed or scope.cancelled_caught:
            self.ended += 1
            await connection.exit(137 if killed else 0)


@asynccontextmanager
async def settled(daemon: Daemon) -> AsyncGenerator[CommandSite]:
    """A site whose every connection must be closed afterwards, by both ends."""
    site = daemon.site()
    yield site
    assert not site.drivers


async def sweep(runs: Runs, act: Callable[[CommandSite], Awaitable[object]], *, least: int, until: int = 200) -> None:
    """Cancel `act` at its first await, its second, and so on until it ends by itself."""
    for number in range(until):
        before = runs.executed, runs.ended
        async with Daemon(runs.script).running() as daemon, settled(daemon) as site:
            with anyio.fail_after(10):
                cancelled = await cancel_at(number, lambda site=site: act(site))  # type: ignore[misc]
            executed, ended = runs.executed - before[0], runs.ended - before[1]
            assert executed == ended, f"cancelled at await {number}: {executed} ran, {ended} were killed or exited"
        if not cancelled:
            assert number >= least
            return


async def test_a_waited_run_is_killed() -> None:
    await sweep(Runs(), lambda site: run_command(site, execute()), least=3)


async def test_a_waited_run_with_callbacks_is_killed() -> None:
    def ignore(text: str) -> None:
        assert text == "hello"

    await sweep(Runs(), lambda site: run_command(site, execute(), on_stdout=ignore), least=4)


async def test_a_start_is_killed() -> None:
    async def start(site: CommandSite) -> None:
        async with await start_command(site, execute()) as handle:
            await handle.kill()
            await handle.result

    runs = Runs()
    async with Daemon(runs.script).running() as daemon:
        for number in range(100):
            with anyio.fail_after(10):
                if not await cancel_at(number, lambda: start(daemon.site())):
                    break
        assert number >= 3


@pytest.mark.parametrize("entered", [False, True])
async def test_reading_that_is_cancelled_at_every_await_loses_nothing(entered: bool) -> None:
    async def talk(connection: Connection) -> None:
        await connection.begin()
        for n in range(20):
            await connection.output(f"{n:02}", 2 * n)
            await anyio.sleep(0.001)
        await connection.exit()

    received: list[str] = []

    async def read(handle: AsyncCommandHandle) -> None:
        received.extend([chunk.data for chunk in await handle.next_batch()])

    async with Daemon(talk).running() as daemon, anyio.create_task_group() as group:
        handle = await start_command(daemon.site(Owner(group if entered else None)), execute())
        number = 0
        while len(received) < 20:
            await cancel_at(number % 4, lambda: read(handle))
            number += 1
        assert received == [f"{n:02}" for n in range(20)]
        assert (await handle.result).stdout == "".join(received)


@pytest.mark.parametrize("entered", [False, True])
async def test_a_wish_that_is_cancelled_leaves_the_handle_usable(entered: bool) -> None:
    runs = Runs()
    async with Daemon(runs.script).running() as daemon:
        for number in range(6):
            async with anyio.create_task_group() as group:
                handle = await start_command(daemon.site(Owner(group if entered else None)), execute(close_stdin=False))
                await cancel_at(number, lambda handle=handle: handle.send_input("x"))  # type: ignore[misc]
                await cancel_at(number, handle.kill)
                await handle.kill()
                with anyio.fail_after(10):
                    assert (await handle.result).exit_code == 137
    assert runs.ended == runs.executed
