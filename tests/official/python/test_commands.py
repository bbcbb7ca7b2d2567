"""The official Python client runs commands on our server (wire protocol, section 3)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from langsmith.sandbox import (
    CommandTimeoutError,
    RunConfig,
    SandboxConnectionError,
    SandboxOperationError,
)

from tests.serving import API_KEY, Server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.anyio

MIB = 1 << 20


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 15.0) -> None:
    """Return once `condition` holds. Raises `TimeoutError` after `seconds`."""
    with anyio.fail_after(seconds):
        while not await condition():
            await anyio.sleep(0.05)


async def processes(sandbox: Any, name: str) -> int:
    """Return how many processes in the sandbox go by `name`."""
    pattern = f"[{name[0]}]{name[1:]}"  # which does not match itself, in the command line of this very look-up
    found = await sandbox.run(f"cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -cx '{pattern}'")
    return int(found.stdout)


async def gone(sandbox: Any, name: str) -> None:
    """Return once no process in the sandbox goes by `name`."""

    async def condition() -> bool:
        return await processes(sandbox, name) == 0

    await until(condition)


async def test_a_command_that_succeeds(sandbox: Any) -> None:
    result = await sandbox.run("echo out; echo err >&2")
    assert (result.stdout, result.stderr, result.exit_code, result.success) == ("out\n", "err\n", 0, True)


@pytest.mark.parametrize(
    ("command", "exit_code"), [("exit 7", 7), ("kill -TERM $$", 143), ("no-such-program-anywhere", 127)]
)
async def test_a_command_that_fails(sandbox: Any, command: str, exit_code: int) -> None:
    result = await sandbox.run(command)
    assert (result.exit_code, result.success) == (exit_code, False)


async def test_callbacks_see_the_output_in_order(sandbox: Any) -> None:
    out: list[str] = []
    err: list[str] = []
    command = "for i in 1 2 3; do echo $i; echo e$i >&2; done"
    result = await sandbox.run(command, on_stdout=out.append, on_stderr=err.append)
    assert "".join(out) == result.stdout == "1\n2\n3\n"
    assert "".join(err) == result.stderr == "e1\ne2\ne3\n"


async def test_a_handle_streams_while_the_command_runs(sandbox: Any) -> None:
    handle = await sandbox.run("echo ready; until [ -e /tmp/go ]; do sleep 0.05; done; echo gone", wait=False)
    assert len(handle.command_id) == 32
    assert isinstance(handle.pid, int)
    chunks: list[Any] = []
    async for chunk in handle:
        if not chunks:
            await sandbox.write("/tmp/go", "")  # Only now can the command end.
        chunks.append(chunk)
    assert "".join(chunk.data for chunk in chunks) == "ready\ngone\n"
    assert [(chunk.stream, chunk.offset) for chunk in chunks] == [("stdout", 0), ("stdout", 6)]
    assert handle.last_stdout_offset == 11
    assert (await handle.result).exit_code == 0


async def test_the_result_of_a_handle_without_iterating(sandbox: Any) -> None:
    handle = await sandbox.run("seq 3; exit 4", wait=False)
    result = await handle.result
    assert (result.stdout, result.exit_code) == ("1\n2\n3\n", 4)


async def test_iterating_again_after_a_break_goes_on(sandbox: Any) -> None:
    handle = await sandbox.run("echo one; read line; echo two", wait=False, close_input=False)
    async for chunk in handle:
        assert chunk.data == "one\n"
        break
    await handle.send_input("\n")
    assert [chunk.data async for chunk in handle] == ["two\n"]


async def test_standard_input_is_at_its_end_by_default(sandbox: Any) -> None:
    assert (await sandbox.run("cat; echo end", timeout=10)).stdout == "end\n"


async def test_input_is_sent_and_closed(sandbox: Any) -> None:
    handle = await sandbox.run("read name; echo hello $name; cat | wc -c", wait=False, close_input=False)
    await handle.send_input("wörld\n")
    await handle.send_input("x" * MIB)
    await handle.close_input()
    assert (await handle.result).stdout == f"hello wörld\n{MIB}\n"
    with pytest.raises(SandboxOperationError):
        await handle.send_input("too late")


async def test_a_terminal(sandbox: Any) -> None:
    command = "test -t 0 -a -t 1 -a -t 2 && tty; stty size; echo $TERM; echo err >&2; read line; echo [$line]"
    handle = await sandbox.run(command, wait=False, pty=True)
    await handle.send_input("typed\n")
    result = await handle.result
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert "/dev/pts/0" in lines
    assert {"24 80", "xterm-256color", "err", "typed", "[typed]"} <= set(lines)


async def test_end_of_file_in_a_terminal(sandbox: Any) -> None:
    handle = await sandbox.run("cat; echo end", wait=False, pty=True)
    await handle.send_input("\x04")
    assert (await handle.result).stdout.endswith("end\r\n")


async def test_kill_ends_the_whole_tree(sandbox: Any) -> None:
    sleeper = "exec -a {} sleep 1000"
    command = f"(setsid bash -c '{sleeper.format('daemonised')}' &) ; {sleeper.format('direct')} & echo ready; wait"
    handle = await sandbox.run(command, wait=False, timeout=0)
    async for chunk in handle:
        assert chunk.data == "ready\n"
        break

    async def running() -> bool:
        return await processes(sandbox, "daemonised") + await processes(sandbox, "direct") == 2

    await until(running)
    await handle.kill()
    await gone(sandbox, "direct")
    await gone(sandbox, "daemonised")
    with pytest.raises(SandboxConnectionError):  # The official client hangs up as it kills (section 3.8).
        await handle.result
    again = await sandbox.reconnect(handle.command_id)
    assert (await again.result).exit_code == 137


async def test_reconnect_replays_from_the_cursor(sandbox: Any) -> None:
    first = await sandbox.run("echo one; read line; echo two; exit 3", wait=False, close_input=False)
    async for _ in first:
        break
    whole = await sandbox.reconnect(first.command_id)
    rest = await first.reconnect()
    await first.send_input("\n")
    assert ((await whole.result).stdout, (await whole.result).exit_code) == ("one\ntwo\n", 3)
    assert [(chunk.data, chunk.offset) async for chunk in rest] == [("two\n", 4)]
    finished = await sandbox.reconnect(first.command_id, stdout_offset=4)
    assert ((await finished.result).stdout, (await finished.result).exit_code) == ("two\n", 3)


async def test_reconnect_to_a_command_that_never_was(sandbox: Any) -> None:
    handle = await sandbox.reconnect("0" * 32)
    with pytest.raises(SandboxOperationError) as caught:
        await handle.result
    assert caught.value.error_type in ("CommandNotFound", "SessionExpired")


async def test_a_finished_command_is_forgotten_after_its_ttl(sandbox: Any) -> None:
    handle = await sandbox.run("echo hi", wait=False, ttl_seconds=1)
    await handle.result

    async def forgotten() -> bool:
        try:
            await (await sandbox.reconnect(handle.command_id)).result
        except SandboxOperationError as error:
            assert error.error_type in ("CommandNotFound", "SessionExpired")
            return True
        return False

    await until(forgotten)


async def test_a_timeout_is_an_error_and_ends_the_tree(sandbox: Any) -> None:
    with pytest.raises(CommandTimeoutError):
        await sandbox.run("echo before; (setsid bash -c 'exec -a straggler sleep 1000' &); sleep 1000", timeout=1)
    await gone(sandbox, "straggler")


async def test_a_timeout_comes_after_the_output_and_is_repeated(sandbox: Any) -> None:
    handle = await sandbox.run("echo before; sleep 1000", timeout=1, wait=False)
    for attempt in (handle, await sandbox.reconnect(handle.command_id)):
        output = ""
        with pytest.raises(CommandTimeoutError):
            async for chunk in attempt:
                output += chunk.data
        assert output == "before\n"


async def test_timeout_zero_is_no_timeout(sandbox: Any) -> None:
    assert (await sandbox.run("sleep 0.2; echo done", timeout=0)).stdout == "done\n"


async def test_environment_and_directory(sandbox: Any) -> None:
    result = await sandbox.run('echo "$GREETING|$PWD"', env={"GREETING": 'a "b" $c ä'}, cwd="/usr/bin")
    assert result.stdout == 'a "b" $c ä|/usr/bin\n'


async def test_run_config(sandbox: Any) -> None:
    config = RunConfig(work_dir="/tmp", env_vars={"GREETING": "hi"})
    assert (await sandbox.run('echo "$GREETING|$PWD"', run_config=config)).stdout == "hi|/tmp\n"


async def test_a_sandbox_has_a_run_config_of_its_own(client: Any) -> None:
    config = RunConfig(work_dir="/tmp", env_vars={"A": "sandbox", "B": "sandbox"})
    async with await client.sandbox(snapshot="host", run_config=config) as sandbox:
        assert (await sandbox.run('echo "$A|$B|$PWD"', env={"B": "command"})).stdout == "sandbox|command|/tmp\n"


async def test_a_shell_of_ones_own(sandbox: Any) -> None:
    assert (await sandbox.run("echo $0", shell="/bin/sh")).stdout == "/bin/sh\n"
    assert (await sandbox.run("print(6 * 7)", shell="/usr/bin/python3")).stdout == "42\n"


@pytest.mark.parametrize("options", [{"shell": "/no/such/shell"}, {"cwd": "/no/such/folder"}], ids=["shell", "cwd"])
async def test_a_command_that_cannot_start(sandbox: Any, options: dict[str, str]) -> None:
    with pytest.raises(SandboxOperationError, match="/no/such/") as caught:
        await sandbox.run("true", **options)
    assert caught.value.error_type == "CommandError"


async def test_five_mebibytes_of_utf_8_arrive_whole(sandbox: Any) -> None:
    line = "äöü€😀" * 13
    command = f"python3 -c \"import sys\nfor _ in range({5 * MIB // len(line.encode())}): print('{line}')\""
    result = await sandbox.run(command)
    assert result.stdout == f"{line}\n" * (5 * MIB // len(line.encode()))


async def test_bytes_that_are_not_utf_8_are_replaced(sandbox: Any) -> None:
    assert (await sandbox.run(r"printf 'a\xffb\xc3'")).stdout == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"


async def test_a_child_in_the_background_does_not_hold_up_the_exit(sandbox: Any) -> None:
    assert (await sandbox.run("sleep 1000 & echo done", timeout=30)).stdout == "done\n"


ABANDON = """
import os, sys
from langsmith.sandbox import SandboxClient
client = SandboxClient(api_endpoint=sys.argv[1], api_key=sys.argv[2])
options = eval(sys.argv[4])
handle = client.get_sandbox(sys.argv[3]).run("exec -a abandoned sleep 1000", timeout=0, wait=False, **options)
print(handle.command_id, handle.pid, flush=True)
os._exit(0)
"""
"""A program that starts a command, prints its id and its process, and is gone."""


async def abandon(server: Server, sandbox: Any, **options: Any) -> tuple[str, int]:
    """Start a command from another process, which ends at once. Return the command's id and its process id."""
    arguments = [sys.executable, "-c", ABANDON, server.endpoint, API_KEY, sandbox.name, repr(options)]
    with anyio.fail_after(30):
        ended = await anyio.run_process(arguments, stderr=None)
    command_id, pid = ended.stdout.split()
    return command_id.decode(), int(pid)


@pytest.mark.parametrize("options", [{"kill_on_disconnect": True}, {"idle_timeout": 1}], ids=str)
async def test_a_command_that_nobody_watches_ends(server: Server, sandbox: Any, options: dict[str, Any]) -> None:
    command_id, _ = await abandon(server, sandbox, **options)
    await gone(sandbox, "abandoned")
    assert (await (await sandbox.reconnect(command_id)).result).exit_code == 137


async def test_a_command_that_nobody_watches_runs_on(server: Server, sandbox: Any) -> None:
    command_id, pid = await abandon(server, sandbox, idle_timeout=-1, ttl_seconds=-1)
    await abandon(server, sandbox, idle_timeout=1)

    async def one_left() -> bool:
        return await processes(sandbox, "abandoned") == 1

    await until(one_left)
    handle = await sandbox.reconnect(command_id)
    assert (await sandbox.run(f"kill -KILL {pid}")).success
    assert (await handle.result).exit_code == 137
