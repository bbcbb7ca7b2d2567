"""A kill leaves nothing of a command, and nothing else suffers (wire protocol, section 3.8; decision record 0201)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.daemon.process import alive, wait_until_gone

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.daemon.process import Daemon

pytestmark = pytest.mark.anyio

ESCAPES = {
    "child": "{sleep} &",
    "its own session": "setsid {sleep} &",
    "double fork": "(setsid sh -c '{sleep} & exit' &)",
    "without environment": "env -i setsid {sleep} &",
    "daemonised without environment": "(env -i PATH=$PATH setsid sh -c '{sleep} & exit' &)",
    "ignoring signals": "(trap '' HUP TERM INT; setsid {sleep} &)",
    "another group": "set -m; {sleep} & set +m",
}
"""Ways in which a process leaves its command. `{sleep}` outlives every test."""


def pids_of(seconds: str) -> list[int]:
    """Return the processes that run `sleep` for this unique time."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")[:2] == [
                b"sleep",
                seconds.encode(),
            ]:
                found.append(int(entry))
    return found


async def until(count: int, seconds: str) -> None:
    """Wait until so many processes run."""
    deadline = time.monotonic() + 10
    while len(pids_of(seconds)) != count:
        assert time.monotonic() < deadline, f"{len(pids_of(seconds))} processes, not {count}"
        await asyncio.sleep(0.01)


def unique() -> str:
    return f"7{os.urandom(3).hex().translate(str.maketrans('abcdef', '123456'))}"


@pytest.mark.parametrize("escape", ESCAPES.values(), ids=ESCAPES)
async def test_a_kill_reaches_what_left_the_session(daemon: Daemon, escape: str) -> None:
    seconds, other = unique(), unique()
    async with daemon.execute(f"setsid sleep {other} & sleep {other}") as bystander:
        await bystander.started()
        command = escape.format(sleep=f"sleep {seconds}") + f"\nsleep {seconds}"
        async with daemon.execute(command, timeout_seconds=0) as session:
            await session.started()
            await until(2, seconds)
            await session.send("kill")
            assert (await session.outcome()).exit_code == 137
            assert [pid for pid in pids_of(seconds) if alive(pid)] == []  # when the exit is said, nothing is left
        assert len(pids_of(other)) == 2
        await bystander.send("kill")
        await bystander.outcome()
        assert [pid for pid in pids_of(other) if alive(pid)] == []


async def test_a_timeout_reaches_what_left_the_session(daemon: Daemon) -> None:
    seconds = unique()
    outcome = await daemon.run(f"env -i setsid sleep {seconds} & sleep {seconds}", timeout_seconds=0.5)

    assert outcome.error_type == "CommandTimeout"
    assert [pid for pid in pids_of(seconds) if alive(pid)] == []


async def test_a_kill_that_is_followed_by_a_drop_is_honoured(daemon: Daemon) -> None:
    async with daemon.execute("sleep 100", timeout_seconds=0) as session:
        started = await session.started()
        await session.send("kill")
        session.connection.transport.abort()
    wait_until_gone(started["pid"])
    async with daemon.websocket() as session:
        await session.reconnect(started["command_id"])
        assert (await session.outcome()).exit_code == 137


async def test_a_kill_of_a_finished_command_is_ignored(daemon: Daemon) -> None:
    first = await daemon.run("exit 4")
    async with daemon.websocket() as session:
        await session.reconnect(str(first.command_id))
        await session.send("kill")
        assert (await session.outcome()).exit_code == 4


async def test_children_in_the_background_delay_the_exit_by_a_second_and_live_on(daemon: Daemon) -> None:
    seconds = unique()
    before = time.monotonic()
    outcome = await daemon.run(f"(sleep 1.5; echo still; exec sleep {seconds}) & echo shell", timeout_seconds=0)

    assert outcome.exit_code == 0
    assert 0.9 < time.monotonic() - before < 5
    assert outcome.stdout == "shell\n"
    await until(1, seconds)  # it wrote to a pipe that nobody attends, and did not die of it
    os.kill(pids_of(seconds)[0], 9)
    await until(0, seconds)


async def test_children_in_the_background_that_hold_no_output_delay_nothing(daemon: Daemon) -> None:
    seconds = unique()
    before = time.monotonic()
    outcome = await daemon.run(f"sleep {seconds} >/dev/null 2>&1 &")

    assert outcome.exit_code == 0
    assert time.monotonic() - before < 0.9
    await until(1, seconds)
    os.kill(pids_of(seconds)[0], 9)
    await until(0, seconds)


async def test_a_tree_that_forks_as_fast_as_it_can_is_killed(daemon: Daemon) -> None:
    seconds = unique()
    fork = f"f() {{ sleep {seconds} & while :; do setsid sh -c 'sleep {seconds} & sleep 0.02' & sleep 0.01; done; }}; f"
    async with daemon.execute(fork, timeout_seconds=0) as session:
        await session.started()
        deadline = time.monotonic() + 10
        while len(pids_of(seconds)) < 20:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        await session.send("kill")
        assert (await session.outcome()).exit_code == 137
    assert [pid for pid in pids_of(seconds) if alive(pid)] == []


@pytest.mark.parametrize("keeps", ["session", "environment"])
async def test_a_program_that_sets_the_limit_itself_is_still_found(daemon: Daemon, keeps: str) -> None:
    seconds = unique()
    detach = "" if keeps == "session" else "import os; os.fork() and os._exit(0); os.setsid(); "
    program = f"import resource, os; {detach}resource.setrlimit(15, (200000, 200000)); "
    program += f"os.execlp('sleep', 'sleep', '{seconds}')"
    async with daemon.execute(f'python3 -c "{program}" & sleep 100', timeout_seconds=0) as session:
        await session.started()
        await until(1, seconds)
        await session.send("kill")
        await session.outcome()
    assert [pid for pid in pids_of(seconds) if alive(pid)] == []


async def test_many_kills_at_once(daemon: Daemon) -> None:
    seconds = unique()

    async def run_and_kill() -> int | None:
        async with daemon.execute(f"setsid sleep {seconds} & sleep {seconds}") as session:
            await session.started()
            await session.send("kill")
            return (await session.outcome()).exit_code

    assert await asyncio.gather(*(run_and_kill() for _ in range(30))) == [137] * 30
    assert [pid for pid in pids_of(seconds) if alive(pid)] == []


async def test_the_end_of_the_daemon_is_the_end_of_all(
    own_daemon: Callable[..., AbstractContextManager[Daemon]],
) -> None:
    seconds = unique()
    with own_daemon() as daemon:
        async with daemon.execute(f"(env -i setsid sleep {seconds} &) ; exit 0") as survivor:
            await survivor.started()
            async with daemon.execute("echo up; sleep 100") as session:
                await session.started()
                await session.output_until("up")
                await until(1, seconds)
                assert daemon.process is not None
                daemon.process.terminate()
                await session.connection.wait_closed()
                assert session.connection.close_code == 1001
        assert daemon.process.wait(5) == 0
        assert [pid for pid in pids_of(seconds) if alive(pid)] == []
        daemon.process = None
