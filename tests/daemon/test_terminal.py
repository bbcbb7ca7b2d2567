"""Commands with a terminal of their own (wire protocol, section 3.7; choices A16 and A17)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.daemon.process import wait_until_gone

if TYPE_CHECKING:
    from tests.daemon.process import Daemon

pytestmark = pytest.mark.anyio


async def test_a_terminal_is_the_controlling_one_and_has_a_size_and_a_type(daemon: Daemon) -> None:
    outcome = await daemon.run(
        "tty; stty size; echo $TERM; echo to-stderr >&2; cut -d' ' -f8 /proc/$$/stat; echo $$", pty=True
    )
    name, size, term, stderr, foreground, pid = outcome.stdout.split("\r\n")[:-1]

    assert name.startswith("/dev/pts/")
    assert size == "24 80"
    assert term == "xterm-256color"
    assert stderr == "to-stderr"
    assert foreground.strip() == pid
    assert outcome.stderr == ""
    assert outcome.exit_code == 0


async def test_a_terminal_echoes_and_end_of_file_is_a_byte(daemon: Daemon) -> None:
    async with daemon.execute("cat; echo over", pty=True) as session:
        await session.started()
        await session.send("close_stdin")
        await session.send("input", data="hello\n")
        assert await session.output_until("hello\r\nhello\r\n") == "hello\r\nhello\r\n"
        await session.send("input", data="\x04")
        outcome = await session.outcome()

    assert outcome.stdout.endswith("over\r\n")
    assert outcome.exit_code == 0


async def test_a_terminal_can_be_resized_and_the_command_learns_of_it(daemon: Daemon) -> None:
    command = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.01; done"
    async with daemon.execute(command, pty=True) as session:
        await session.started()
        await session.output_until("ready")
        await session.send("resize", cols=0, rows=1 << 20)
        await session.send("resize", cols=132, rows=50)
        assert (await session.outcome()).stdout.endswith("50 132\r\n")


async def test_an_interrupt_reaches_the_foreground(daemon: Daemon) -> None:
    async with daemon.execute("trap 'echo caught; exit 9' INT; echo ready; read x", pty=True) as session:
        await session.started()
        await session.output_until("ready")

        async def interrupt() -> None:
            while True:  # a shell may miss one, just before it begins to read
                await session.send("input", data="\x03")
                await asyncio.sleep(0.2)

        interrupting = asyncio.create_task(interrupt())
        outcome = await session.outcome()
        interrupting.cancel()
        await asyncio.wait([interrupting])
    assert "caught" in outcome.stdout
    assert outcome.exit_code == 9


async def test_an_interactive_shell_needs_no_command(daemon: Daemon) -> None:
    async with daemon.execute(None, pty=True, shell="/bin/sh") as session:
        await session.started()
        await session.send("input", data="echo $((6*7))\nexit 5\n")
        outcome = await session.outcome()

    assert "42\r\n" in outcome.stdout
    assert outcome.exit_code == 5


async def test_a_command_without_a_terminal_needs_to_be_given(daemon: Daemon) -> None:
    outcome = await daemon.run(None)

    assert (outcome.error, outcome.error_type) == ("a command is needed, unless pty is true", "CommandError")


async def test_the_last_output_of_a_terminal_is_not_lost(daemon: Daemon) -> None:
    outcome = await daemon.run("seq 20000", pty=True)

    assert outcome.stdout == "".join(f"{number}\r\n" for number in range(1, 20001))


async def test_kill_and_timeout_work_with_a_terminal(daemon: Daemon) -> None:
    async with daemon.execute("sleep 100", pty=True) as session:
        started = await session.started()
        await session.send("kill")
        assert (await session.outcome()).exit_code == 137
    wait_until_gone(started["pid"])
    assert (await daemon.run("sleep 100", pty=True, timeout_seconds=0.2)).error_type == "CommandTimeout"


async def test_two_terminals_are_two(daemon: Daemon) -> None:
    async with daemon.execute("tty; read x", pty=True) as first:
        await first.started()
        name = await first.output_until("\n")
        assert (await daemon.run("tty", pty=True)).stdout != name
        await first.send("kill")
        await first.outcome()


@pytest.mark.root
async def test_the_terminal_of_another_user_is_theirs(daemon: Daemon) -> None:
    outcome = await daemon.run("stat -c %U $(tty)", pty=True, run_config={"user": "nobody", "work_dir": "/"})

    assert outcome.stdout == "nobody\r\n"
