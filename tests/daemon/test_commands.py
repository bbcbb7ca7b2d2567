"""Commands over `/execute/ws` (wire protocol, sections 3.3 to 3.9, and the choices A1 to A27 of section 9.1)."""

from __future__ import annotations

import asyncio
import json
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tests.daemon.process import alive, masked, upgrade, wait_until_gone

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.daemon.process import Daemon

pytestmark = pytest.mark.anyio


# --- start and end --------------------


async def test_a_command_says_its_output_and_its_exit_code_and_then_the_daemon_closes(daemon: Daemon) -> None:
    outcome = await daemon.run("echo hi; echo err >&2; exit 3", command_id="fixed-id")

    assert (outcome.stdout, outcome.stderr, outcome.exit_code) == ("hi\n", "err\n", 3)
    assert outcome.command_id == "fixed-id"
    assert outcome.close_code == 1000


async def test_the_pid_is_that_of_the_shell(daemon: Daemon) -> None:
    outcome = await daemon.run("echo $$")

    assert outcome.stdout == f"{outcome.pid}\n"


async def test_a_signal_is_128_and_its_number(daemon: Daemon) -> None:
    assert (await daemon.run("kill -TERM $$")).exit_code == 143
    assert (await daemon.run("kill -KILL $$")).exit_code == 137


async def test_an_id_is_made_up_if_none_is_given(daemon: Daemon) -> None:
    outcome = await daemon.run("true", command_id=None)

    assert outcome.command_id
    assert outcome.exit_code == 0


async def test_the_same_id_never_starts_a_second_command(daemon: Daemon) -> None:
    async with daemon.execute("echo one; read line; echo $line") as first:
        started = await first.started()
        await first.output_until("one")
        async with daemon.execute("echo two", command_id=started["command_id"], close_stdin=True) as second:
            assert await second.started() == started
            await second.output_until("one")
            await second.send("input", data="three\n")
            assert (await second.outcome()).stdout == "three\n"
        assert (await first.outcome()).stdout == "three\n"
    again = await daemon.run("echo four", command_id=started["command_id"])
    assert (again.stdout, again.exit_code, again.pid) == ("one\nthree\n", 0, started["pid"])


async def test_no_zombie_is_left(daemon: Daemon) -> None:
    outcome = await daemon.run("true")

    assert not Path(f"/proc/{outcome.pid}").exists()


async def test_fifty_commands_at_once(daemon: Daemon) -> None:
    outcomes = await asyncio.gather(*(daemon.run(f"sleep 0.05; echo {index}") for index in range(50)))

    assert [outcome.stdout for outcome in outcomes] == [f"{index}\n" for index in range(50)]


# --- environment --------------------


async def test_the_environment_is_small_and_right(own_daemon: Callable[..., AbstractContextManager[Daemon]]) -> None:
    with own_daemon(env_vars={"IMAGE": "1", "BOTH": "image"}, hostname="box") as daemon:
        outcome = await daemon.run("env -0", env={"MINE": "2", "BOTH": "mine"})

    environment = dict(entry.split("=", 1) for entry in outcome.stdout.split("\0") if entry)
    assert environment["IMAGE"] == "1"
    assert environment["MINE"] == "2"
    assert environment["BOTH"] == "mine"
    assert environment["HOSTNAME"] == "box"
    assert environment["PATH"] == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert environment["USER"] == environment["LOGNAME"]
    assert environment["HOME"].startswith("/")
    assert "TERM" not in environment
    extra = {"IMAGE", "MINE", "BOTH", "HOSTNAME", "PATH", "USER", "LOGNAME", "HOME", "SHELL", "SANDBOX_COMMAND_MARK"}
    assert set(environment) - {"PWD", "SHLVL", "_", "OLDPWD"} == extra


async def test_no_signal_is_ignored_or_blocked(daemon: Daemon) -> None:
    lines = (await daemon.run("cat /proc/self/status")).stdout.splitlines()
    status = dict(line.split(":\t") for line in lines if ":\t" in line)

    of_glibc = 0b11 << 31  # signals 32 and 33: it keeps them for itself, and below `make` it ignores them
    assert int(status["SigIgn"], 16) & ~of_glibc == 0
    assert int(status["SigBlk"], 16) == 0


async def test_cwd_is_where_the_command_runs(daemon: Daemon) -> None:
    (daemon.root / "below").mkdir(exist_ok=True)

    assert (await daemon.run("pwd")).stdout == f"{daemon.root}\n"
    assert (await daemon.run("pwd", cwd="/usr")).stdout == "/usr\n"
    assert (await daemon.run("pwd", cwd="below")).stdout == f"{daemon.root}/below\n"


async def test_a_cwd_that_is_missing_is_an_error_that_names_it(daemon: Daemon) -> None:
    outcome = await daemon.run("pwd", cwd="/no/such/place")

    assert outcome.error_type == "CommandError"
    assert outcome.error == "the working directory '/no/such/place' does not exist"
    assert outcome.close_code == 1000


async def test_run_config_gives_directory_and_environment(daemon: Daemon) -> None:
    config = {"work_dir": "/usr", "env_vars": {"A": "b"}}
    outcome = await daemon.run("pwd; echo $A", run_config=config)

    assert outcome.stdout == "/usr\nb\n"


async def test_run_config_excludes_env_and_cwd(daemon: Daemon) -> None:
    for members in ({"env": {"A": "b"}}, {"cwd": "/"}):
        outcome = await daemon.run("true", run_config={"user": "root"}, **members)
        assert outcome.error_type == "CommandError"
        assert "run_config cannot be given together" in str(outcome.error)


@pytest.mark.root
async def test_run_config_gives_the_user(daemon: Daemon) -> None:
    outcome = await daemon.run(
        "id -un; id -u; echo $HOME $USER", cwd=None, run_config={"user": "nobody", "work_dir": "/"}
    )
    assert outcome.stdout.split()[::3] == ["nobody", "nobody"]
    assert (await daemon.run("id -u; id -g; id -G", run_config={"user": "1234:5678", "work_dir": "/"})).stdout == (
        "1234\n5678\n5678\n"
    )


async def test_an_unknown_user_is_an_error(daemon: Daemon) -> None:
    outcome = await daemon.run("true", run_config={"user": "nobody-of-this-name"})

    assert outcome.error == "there is no user 'nobody-of-this-name' in the sandbox"


@pytest.mark.parametrize("user", ["9" * 5000, "99999999999", "4294967295", "\u0663", "", ":", "0:x"])
async def test_a_number_that_no_user_can_have_never_stops_the_daemon(daemon: Daemon, user: str) -> None:
    outcome = await daemon.run("true", run_config={"user": user})
    if user.isalnum():
        assert outcome.error == f"there is no user {user!r} in the sandbox"


@pytest.mark.parametrize("config", [{"user": 5}, {"env_vars": {"A": 1}}, {"env_vars": "A=1"}, {"work_dir": []}])
async def test_a_run_config_of_the_wrong_shape_is_an_error(daemon: Daemon, config: dict[str, Any]) -> None:
    assert (await daemon.run("true", run_config=config)).error_type == "CommandError"


async def test_another_shell_can_be_named(daemon: Daemon) -> None:
    assert (await daemon.run("echo $0", shell="/bin/sh")).stdout == "/bin/sh\n"
    assert (await daemon.run("print(6 * 7)", shell="python3")).stdout == "42\n"


async def test_a_shell_that_is_missing_is_an_error(daemon: Daemon) -> None:
    outcome = await daemon.run("true", shell="/no/such/shell")

    assert outcome.error == "the program '/no/such/shell' does not exist in the sandbox"
    assert outcome.error_type == "CommandError"


async def test_a_shell_that_is_no_program_is_an_error(daemon: Daemon) -> None:
    (daemon.root / "text").write_text("x")
    outcome = await daemon.run("true", shell=str(daemon.root / "text"))

    assert outcome.error_type == "CommandError"
    assert "Permission denied" in str(outcome.error)


async def test_a_command_that_is_too_long_is_an_error_and_the_daemon_lives(daemon: Daemon) -> None:
    outcome = await daemon.run(": " + "x" * 300_000)

    assert outcome.error == "the command and its environment are too long for the system: put the text into a file"
    assert (await daemon.run("echo alive")).stdout == "alive\n"


async def test_a_nul_character_in_a_command_is_an_error(daemon: Daemon) -> None:
    assert (await daemon.run("echo \0")).error_type == "CommandError"
    assert (await daemon.run("true", env={"A": "\0"})).error_type == "CommandError"
    assert (await daemon.run("true", cwd="\0")).error_type == "CommandError"


@pytest.mark.root
async def test_when_no_process_can_be_made_it_is_an_error_and_the_daemon_lives(
    own_daemon: Callable[..., AbstractContextManager[Daemon]],
) -> None:
    with own_daemon() as daemon:
        assert daemon.process is not None
        descriptors = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
        limit = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
        async with daemon.websocket() as session:
            resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (descriptors + 2, limit[1]))
            await session.execute("true")
            outcome = await session.outcome()
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, limit)

        assert outcome.error_type == "CommandError"
        assert "no room for another command" in str(outcome.error)
        assert (await daemon.run("echo alive")).stdout == "alive\n"


# --- output --------------------


async def test_characters_are_never_split_and_offsets_count_what_was_sent(daemon: Daemon) -> None:
    command = r"printf 'a\xe2\x82'; sleep 0.05; printf '\xacb\xff\xe2'; "
    frames: list[dict[str, Any]] = []
    async with daemon.execute(command, close_stdin=True) as session:
        while not frames or frames[-1]["type"] != "exit":
            frames.append(await session.receive())

    data = ""
    for frame in frames:
        if frame["type"] == "stdout":
            assert frame["offset"] == len(data.encode())
            data += frame["data"]
    assert data == "a\u20acb\ufffd\ufffd"


async def test_much_output_arrives_whole_in_frames_of_bounded_size(daemon: Daemon) -> None:
    size, largest = 0, 0
    async with daemon.execute("head -c 20000000 /dev/zero", close_stdin=True) as session:
        await session.started()
        async for message in session.connection:
            largest = max(largest, len(message))
            frame = json.loads(message)
            if frame["type"] == "stdout":
                assert frame["offset"] == size
                size += len(frame["data"])
    assert size == 20_000_000
    assert largest < 1 << 20


async def test_a_reader_that_does_not_read_holds_the_process_back(daemon: Daemon) -> None:
    path = daemon.root / "progress"
    command = f"for i in $(seq 2000); do head -c 100000 /dev/zero; echo $i > {path}; done"
    async with daemon.execute(command, close_stdin=True) as slow:
        await slow.started()
        await _settled(path)
        assert int(path.read_text()) < 1000
        await slow.send("kill")
        slow.connection.transport.abort()


async def _settled(path: Path) -> None:
    """Wait until a file that grows has not changed for a while."""
    before, since = "", asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() < since + 0.3:
        now = path.read_text() if path.exists() else ""
        if now != before:
            before, since = now, asyncio.get_running_loop().time()
        await asyncio.sleep(0.01)


async def test_the_last_words_of_a_command_reach_a_slow_reader(daemon: Daemon) -> None:
    async with daemon.websocket(max_queue=1) as slow:
        await slow.execute("head -c 1500000 /dev/zero; echo end", close_stdin=True)
        started = await slow.started()
        wait_until_gone(started["pid"])
        await daemon.run("sleep 1.3")  # longer than a command's output is waited for when its shell has exited
        outcome = await slow.outcome()

    assert outcome.exit_code == 0
    assert len(outcome.stdout) == 1_500_004
    assert outcome.stdout.endswith("end\n")


async def test_with_nobody_attached_the_process_runs_on_and_the_newest_output_is_kept(daemon: Daemon) -> None:
    path = daemon.root / "done"
    command = f"for i in $(seq 50); do head -c 100000 /dev/zero; done; echo end; touch {path}"
    async with daemon.execute(command, close_stdin=True) as session:
        command_id = (await session.started())["command_id"]
    with anyio.fail_after(10):
        while not path.exists():
            await asyncio.sleep(0.01)
    async with daemon.websocket() as session:
        await session.reconnect(command_id)
        await session.started()
        frame = await session.receive()
        assert frame["offset"] > 0
        kept = len(frame["data"])
        assert (outcome := await session.outcome()).stdout.endswith("\0end\n")
        assert 1 << 20 <= kept + len(outcome.stdout) < 2 << 20


# --- reconnecting --------------------


async def test_a_connection_that_breaks_does_not_end_the_command(daemon: Daemon) -> None:
    async with daemon.execute("echo one; read x; echo two", timeout_seconds=0) as session:
        started = await session.started()
        await session.output_until("one\n")
        session.connection.transport.abort()
    async with daemon.websocket() as session:
        await session.reconnect(started["command_id"], stdout_offset=2)
        assert await session.started() == started
        assert await session.receive() == {"type": "stdout", "data": "e\n", "offset": 2}
        await session.send("input", data="go\n")
        assert (await session.outcome()).stdout == "two\n"


async def test_a_finished_command_replays_until_its_time_is_over(daemon: Daemon) -> None:
    first = await daemon.run("echo out", ttl_seconds=1)
    async with daemon.websocket() as session:
        await session.reconnect(str(first.command_id), stdout_offset=1)
        assert (await session.outcome()).stdout == "ut\n"
    error = None
    with anyio.fail_after(10):
        while error is None:
            async with daemon.websocket() as session:
                await session.reconnect(str(first.command_id))
                error = (await session.outcome()).error_type
    assert error == "SessionExpired"


async def test_an_unknown_command_is_not_found(daemon: Daemon) -> None:
    async with daemon.websocket() as session:
        await session.reconnect("nobody-knows")
        outcome = await session.outcome()

    assert (outcome.error, outcome.error_type) == ("there is no command nobody-knows", "CommandNotFound")
    assert outcome.close_code == 1000


# --- time --------------------


async def test_a_timeout_kills_and_is_an_error_after_the_output_also_for_those_who_come_later(daemon: Daemon) -> None:
    outcome = await daemon.run("echo before; sleep 100", timeout_seconds=1)

    assert outcome.stdout == "before\n"
    assert outcome.error_type == "CommandTimeout"
    assert "timeout of 1 seconds" in str(outcome.error)
    assert not alive(outcome.pid)
    async with daemon.websocket() as session:
        await session.reconnect(str(outcome.command_id))
        again = await session.outcome()
    assert (again.stdout, again.error) == (outcome.stdout, outcome.error)


async def test_a_command_that_nobody_attends_is_killed_after_its_idle_timeout(daemon: Daemon) -> None:
    async with daemon.execute("sleep 100", idle_timeout_seconds=0.2) as session:
        started = await session.started()
        await asyncio.sleep(0.4)  # attached for longer than the idle timeout
        assert alive(started["pid"])
    wait_until_gone(started["pid"])
    async with daemon.websocket() as session:
        await session.reconnect(started["command_id"])
        assert (await session.outcome()).exit_code == 137


@pytest.mark.parametrize("abort", [False, True])
async def test_a_command_is_killed_when_its_client_goes_if_it_said_so(daemon: Daemon, abort: bool) -> None:
    async with daemon.execute("sleep 100", kill_on_disconnect=True) as session:
        started = await session.started()
        if abort:
            session.connection.transport.abort()
    wait_until_gone(started["pid"])


# --- input --------------------


async def test_input_reaches_the_command_and_closing_ends_it(daemon: Daemon) -> None:
    async with daemon.execute("cat; echo over") as session:
        await session.started()
        await session.send("input", data="h\u00e9llo\n")
        await session.output_until("h\u00e9llo\n")
        await session.send("close_stdin")
        await session.send("close_stdin")
        await session.send("input", data="dropped")
        outcome = await session.outcome()

    assert (outcome.stdout, outcome.exit_code) == ("over\n", 0)


async def test_input_is_closed_from_the_beginning_if_asked(daemon: Daemon) -> None:
    async with daemon.execute("cat; echo over", close_stdin=True) as session:
        assert (await session.outcome()).stdout == "over\n"


async def test_closing_may_come_before_the_command(daemon: Daemon) -> None:
    async with daemon.websocket() as session:
        await session.send("close_stdin")
        await session.execute("cat; echo over")
        assert (await session.outcome()).stdout == "over\n"


async def test_detaching_leaves_the_input_open(daemon: Daemon) -> None:
    async with daemon.execute("cat") as session:
        started = await session.started()
    async with daemon.websocket() as session:
        await session.send("close_stdin")
        await session.reconnect(started["command_id"])
        outcome = await session.outcome()

    assert outcome.exit_code == 0


async def test_much_input_goes_through_whole_while_output_flows(daemon: Daemon) -> None:
    line = "0123456789abcde\n" * 4096
    async with daemon.execute("cat") as session:
        await session.started()

        async def write() -> None:
            for _ in range(100):
                await session.send("input", data=line)
            await session.send("close_stdin")

        writing = asyncio.create_task(write())
        outcome = await session.outcome()
        await writing

    assert outcome.stdout == line * 100


async def test_a_client_that_was_held_back_is_read_on_however_the_command_catches_up(daemon: Daemon) -> None:
    piece, pieces = "x" * 65536, 600
    async with daemon.execute("cat > /dev/null; echo all") as session:
        await session.started()
        async with asyncio.timeout(30):
            for _ in range(pieces):
                await session.send("input", data=piece)
            await session.send("close_stdin")
            assert (await session.outcome()).stdout == "all\n"


async def test_input_that_nobody_reads_holds_the_client_back_and_not_the_output(daemon: Daemon) -> None:
    async with daemon.execute("for i in $(seq 30); do echo $i; sleep 0.02; done; sleep 100") as session:
        started = await session.started()

        async def write() -> None:
            while True:
                await session.send("input", data="x" * 100_000)

        writing = asyncio.create_task(write())
        await session.output_until("30\n")
        assert not writing.done()
        writing.cancel()
        await asyncio.wait([writing])
        async with daemon.websocket() as other:
            await other.reconnect(started["command_id"])
            await other.started()
            await other.send("kill")
            assert (await other.outcome()).exit_code == 137


async def test_a_kill_behind_input_that_nobody_reads_works_once_the_client_has_gone(daemon: Daemon) -> None:
    frames = [{"type": "execute", "command": "sleep 100", "timeout_seconds": 0, "command_id": "kill-behind-input"}]
    frames += [{"type": "input", "data": "x" * 100_000} for _ in range(12)]
    with upgrade(daemon) as connection:
        connection.sendall(b"".join(masked(json.dumps(frame).encode()) for frame in [*frames, {"type": "kill"}]))
        started = json.loads(connection.recv(1000)[2:])
    wait_until_gone(started["pid"])


async def test_garbage_is_ignored_once_attached(daemon: Daemon) -> None:
    async with daemon.execute("read x; echo $x") as session:
        await session.started()
        await session.connection.send("{")
        await session.connection.send(b"\xff\xff")
        await session.send("input", data=5)
        await session.send("reconnect", command_id="other")
        await session.send("something_new", value=1)
        await session.send("input", data="fine\n")
        assert (await session.outcome()).stdout == "fine\n"


@pytest.mark.parametrize("payload", ["{", "[]", '"x"', '{"type":"execute","command":5,"command_id":"x"}', '{"type":3}'])
async def test_garbage_before_anything_is_attached_is_an_error(daemon: Daemon, payload: str) -> None:
    async with daemon.websocket() as session:
        await session.connection.send(payload)
        outcome = await session.outcome()

    assert outcome.error_type == "CommandError"
    assert outcome.error
    assert outcome.close_code == 1000
