"""Commands over connections that are full in one direction or in both."""

from __future__ import annotations

import anyio
import pytest

from sandbox_aio.client.command import start_command
from sandbox_aio.protocol.frames import Input, Kill, Reconnect
from tests.drivers.test_command import entered as entered  # a fixture
from tests.drivers.test_command import forever
from tests.scripted_daemon import Connection, Daemon, Owner, execute

pytestmark = pytest.mark.anyio


async def flood_until_killed(connection: Connection) -> None:
    """Say more than a client reads ahead; then be killed."""
    await connection.begin()
    for n in range(80):
        await connection.output("x" * 32768, n * 32768)
    assert isinstance(await connection.receive(), Kill)
    await connection.exit(137)


async def test_an_exit_is_not_overdue_while_nobody_takes_the_output(entered: bool) -> None:
    """The exit of a killed command, and of one with a timeout, may lie behind output for any time."""
    async with Daemon(flood_until_killed).running() as daemon, anyio.create_task_group() as group:
        site = daemon.site(Owner(group if entered else None), kill_grace=0.2, timeout_grace=0.0)
        handle = await start_command(site, execute(timeout_seconds=1))
        await anyio.sleep(0.1)
        await handle.kill()
        await anyio.sleep(1.5)
        with anyio.fail_after(10):
            result = await handle.result
        assert (result.exit_code, len(result.stdout)) == (137, 80 * 32768)


async def test_a_reader_that_is_held_up_still_sees_the_end(entered: bool) -> None:
    """A command that is given up while its output waits neither hangs the event loop nor its handle."""
    async with Daemon(flood_until_killed).running() as daemon, anyio.create_task_group() as group:
        site = daemon.site(Owner(group if entered else None))
        handle = await start_command(site, execute())
        await anyio.sleep(0.5)
        await handle.aclose()
        with anyio.fail_after(10):
            while not handle._driver.finished:
                await anyio.sleep(0.01)


async def test_output_is_read_while_input_fills_the_connection() -> None:
    """A daemon may read no more input before its output is read: a reader must not wait for the writer."""

    async def echo(connection: Connection) -> None:
        await connection.begin()
        size = 0
        while isinstance(frame := await connection.receive(), Input):
            await connection.output(frame.data, size)
            size += len(frame.data)
        await connection.exit()

    text = "x" * 2**25
    async with Daemon(echo).running() as daemon, anyio.create_task_group() as group:
        handle = await start_command(daemon.site(Owner(group)), execute(close_stdin=False), max_output_bytes=None)

        async def write() -> None:
            await handle.send_input(text)
            await handle.close_input()

        group.start_soon(write)
        with anyio.fail_after(30):
            assert (await handle.result).stdout == text


async def test_a_connection_that_breaks_in_the_middle_of_sending_is_made_anew(entered: bool) -> None:
    async def cut(connection: Connection) -> None:
        await connection.begin()
        await connection.output("a", 0)
        await anyio.sleep(0.1)
        await connection.cut()

    async def rest(connection: Connection) -> None:
        frame = await connection.begin()
        assert isinstance(frame, Reconnect)
        await connection.output("ab"[frame.stdout_offset :], frame.stdout_offset)
        await connection.exit()

    async with Daemon(cut, rest).running() as daemon, anyio.create_task_group() as group:
        site = daemon.site(Owner(group if entered else None))
        handle = await start_command(site, execute(close_stdin=False))
        with anyio.fail_after(10):
            await handle.send_input("x" * 2**25)
            assert (await handle.result).stdout == "ab"


async def test_a_kill_passes_input_that_the_daemon_does_not_read_any_more() -> None:
    """The kill fits into the connection, but is stuck there behind the input."""

    async def deaf(connection: Connection) -> None:
        await connection.begin()
        await anyio.sleep_forever()

    async with Daemon(deaf, forever).running() as daemon, anyio.create_task_group() as group:
        handle = await start_command(daemon.site(Owner(group), kill_patience=0.1), execute(close_stdin=False))
        await handle.send_input("unread")
        await handle.kill()
        with anyio.fail_after(10):
            assert (await handle.result).exit_code == 137
