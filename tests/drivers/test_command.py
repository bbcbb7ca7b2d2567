"""Commands over real sockets: what the core decides, a driver carries out, on both event loops."""

from __future__ import annotations

import socket
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sandbox_aio.client.command import WebSocketMissing, attach_command, run_command, start_command
from sandbox_aio.errors import (
    CommandTimeoutError,
    RemoteProtocolError,
    ResourceNotFoundError,
    SandboxAuthenticationError,
    SandboxConnectionError,
    SandboxOperationError,
)
from sandbox_aio.models import OutputChunk, OutputGap
from sandbox_aio.protocol.frames import CloseStdin, ErrorReply, Exit, Input, Kill, Reconnect
from tests.scripted_daemon import Connection, Daemon, Owner, execute, refusal

pytestmark = pytest.mark.anyio


async def hello(connection: Connection) -> None:
    await connection.begin()
    await connection.output("héllo\n", 0)
    await connection.output("oops\n", 0, "stderr")
    await connection.exit(3)


async def forever(connection: Connection) -> None:
    """Run until killed."""
    await connection.begin()
    while (frame := await connection.receive()) is not None:
        if isinstance(frame, Kill):
            await connection.exit(137)


@pytest.fixture
def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture(params=["entered", "not entered"])
def entered(request: pytest.FixtureRequest) -> bool:
    """Whether the client has tasks of its own."""
    return bool(request.param == "entered")


async def test_run_returns_all_output_and_the_exit_code() -> None:
    async with Daemon(hello).running() as daemon:
        result = await run_command(daemon.site(), execute())
    assert (result.stdout, result.stderr, result.exit_code, result.killed) == ("héllo\n", "oops\n", 3, False)


async def test_callbacks_see_the_output_in_order_and_may_be_coroutine_functions() -> None:
    seen: list[tuple[str, str]] = []

    async def on_stderr(text: str) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(("stderr", text))

    async with Daemon(hello).running() as daemon:
        site = daemon.site()
        result = await run_command(
            site, execute(), on_stdout=lambda text: seen.append(("stdout", text)), on_stderr=on_stderr
        )
    assert seen == [("stdout", "héllo\n"), ("stderr", "oops\n")]
    assert result.stdout == "héllo\n"


async def test_an_error_in_a_callback_kills_the_command_and_arrives_as_itself() -> None:
    frames: list[Any] = []

    async def script(connection: Connection) -> None:
        await connection.begin()
        await connection.output("x", 0)
        frames.append(await connection.receive())
        await connection.exit(137)

    def fail(text: str) -> None:
        raise ZeroDivisionError(text)

    async with Daemon(script).running() as daemon:
        with pytest.raises(ZeroDivisionError, match="x"):
            await run_command(daemon.site(), execute(), on_stdout=fail)
    assert frames == [Kill()]


async def test_cancelling_a_run_kills_its_command() -> None:
    started = anyio.Event()
    frames: list[Any] = []

    async def script(connection: Connection) -> None:
        await connection.begin()
        started.set()
        frames.append(await connection.receive())
        await connection.exit(137)

    async with Daemon(script).running() as daemon, anyio.create_task_group() as group:
        group.start_soon(run_command, daemon.site(), execute())
        await started.wait()
        group.cancel_scope.cancel()
    assert frames == [Kill()]


async def test_iteration_yields_chunks_and_the_result_has_them_too(entered: bool) -> None:
    async with Daemon(hello).running() as daemon, anyio.create_task_group() as group:
        handle = await start_command(daemon.site(Owner(group if entered else None)), execute())
        assert (handle.command_id, handle.pid) == ("c1", 7)
        chunks = [(chunk.stream, chunk.data, chunk.offset) async for chunk in handle]
        assert chunks == [("stdout", "héllo\n", 0), ("stderr", "oops\n", 0)]
        assert (handle.last_stdout_offset, handle.last_stderr_offset) == (7, 5)
        assert [chunk async for chunk in handle] == []
        assert (await handle.result).stdout == "héllo\n"


async def test_a_broken_loop_goes_on_where_it_stopped_and_offsets_follow_what_was_yielded(entered: bool) -> None:
    async def script(connection: Connection) -> None:
        await connection.begin()
        for n in range(5):
            await connection.output(f"{n}", n)
        await connection.exit()

    async with Daemon(script).running() as daemon, anyio.create_task_group() as group:
        handle = await start_command(daemon.site(Owner(group if entered else None)), execute())
        async for chunk in handle:
            if chunk.data == "2":
                break
        assert handle.last_stdout_offset == 3
        assert [chunk.data async for chunk in handle] == ["3", "4"]


async def test_a_result_can_be_awaited_by_many_tasks_and_again(entered: bool) -> None:
    results: list[str] = []

    async with Daemon(hello).running() as daemon, anyio.create_task_group() as group:
        handle = await start_command(daemon.site(Owner(group if entered else None)), execute())

        async def wait() -> None:
            results.append((await handle.result).stdout)

        async with anyio.create_task_group() as waiters:
            for _ in range(3):
                waiters.start_soon(wait)
        await wait()
    assert results == ["héllo\n"] * 4


async def test_cancelling_a_wait_loses_no_output(entered: bool) -> None:
    more = anyio.Event()

    async def script(connection: Connection) -> None:
        await connection.begin()
        await more.wait()
        await connection.output("late", 0)
        await connection.exit()

    async with Daemon(script).running() as daemon, anyio.create_task_group() as group:
        handle = await start_command(daemon.site(Owner(group if entered else None)), execute())
        with anyio.move_on_after(0.05):
            await handle.result
        more.set()
        assert (await handle.result).stdout == "late"


async def test_a_kill_still_gets_its_exit_code(entered: bool) -> None:
    async with Daemon(forever).running() as daemon, anyio.create_task_group() as group:
        handle = await start_command(daemon.site(Owner(group if entered else None)), execute())
        await handle.kill()
        result = await handle.result
        await handle.kill()
    assert (result.exit_code, result.killed) == (137, True)


async def test_a_kill_survives_the_loss_of_the_connection(entered: bool) -> None:
    async def first(connection: Connection) -> None:
        await connection.begin()
        assert await connection.receive() == Kill()
        await connection.cut()

    async with Daemon(first, forever).running() as daemon, anyio.create_task_group() as group:
        handle = await start_command(daemon.site(Owner(group if entered else None)), execute())
        await handle.kill()
        assert (await handle.result).exit_code == 137
    assert len(daemon.connections) == 2


async def test_killing_a_handle_that_only_attaches_reaches_the_command(entered: bool) -> None:
    async with Daemon(forever).running() as daemon, anyio.create_task_group() as group:
        site = daemon.site(Owner(group if entered else None))
        handle = attach_command(site, Reconnect(command_id="c1"))
        await handle.kill()
        assert (await handle.result).exit_code == 137


async def test_input_and_its_end_arrive_in_order(entered: bool) -> None:
    frames: list[Any] = []

    async def script(connection: Connection) -> None:
        await connection.begin()
        frames.extend([await connection.receive() for _ in range(3)])
        await connection.exit()

    async with Daemon(script).running() as daemon, anyio.create_task_group() as group:
        handle = await start_command(daemon.site(Owner(group if entered else None)), execute(close_stdin=False))
        await handle.send_input("a")
        await handle.send_input("b")
        await handle.close_input()
        await handle.close_input()
        with pytest.raises(SandboxOperationError, match="CLOSED"):
            await handle.send_input("c")
        await handle.result
    assert frames == [Input(data="a"), Input(data="b"), CloseStdin()]


async def test_input_of_a_handle_that_only_attaches_waits_for_the_connection(entered: bool) -> None:
    frames: list[Any] = []

    async def script(connection: Connection) -> None:
        await connection.begin()
        frames.append(await connection.receive())
        await connection.exit()

    async with Daemon(script).running() as daemon, anyio.create_task_group() as group:
        site = daemon.site(Owner(group if entered else None))
        handle = attach_command(site, Reconnect(command_id="c1"))
        await handle.send_input("a")
        await handle.result
    assert frames == [Input(data="a")]


@pytest.mark.parametrize("how", ["cut", "1000", "1001", "1011", "mid-frame"])
async def test_a_lost_connection_is_resumed_at_the_exact_byte(entered: bool, how: str) -> None:
    asked: list[Any] = []

    async def first(connection: Connection) -> None:
        await connection.begin()
        await connection.output("hél", 0)
        if how == "mid-frame":
            await connection.send_bytes(b'\x81\x7e\x10\x00{"type":"stdout","da')
        if how in ("cut", "mid-frame"):
            await connection.stream.aclose()
        else:
            await connection.close(int(how))

    async def second(connection: Connection) -> None:
        asked.append(await connection.begin())
        await connection.output("lo", 4)
        await connection.exit()

    async with Daemon(first, second).running() as daemon, anyio.create_task_group() as group:
        handle = await start_command(daemon.site(Owner(group if entered else None)), execute())
        assert "".join([chunk.data async for chunk in handle]) == "héllo"
        assert (await handle.result).stdout == "héllo"
    assert asked == [Reconnect(command_id="c1", stdout_offset=4)]
    assert [c.headers["x-extra"] for c in daemon.connections] == ["e", "e"]


async def test_a_replay_that_overlaps_is_trimmed_and_one_that_starts_late_is_a_gap(entered: bool) -> None:
    async def first(connection: Connection) -> None:
        await connection.begin()
        await connection.output("abcd", 0)
        await connection.cut()

    async def second(connection: Connection) -> None:
        await connection.begin()
        await connection.output("cdef", 2)
        await connection.output("z", 10)
        await connection.exit()

    async with Daemon(first, second).running() as daemon, anyio.create_task_group() as group:
        handle = await start_command(daemon.site(Owner(group if entered else None)), execute())
        chunks = [chunk async for chunk in handle]
        result = await handle.result
    assert "".join(chunk.data for chunk in chunks) == "abcdefz"
    assert chunks[-2:] == [OutputGap("stdout", "", 6, missing_bytes=4), OutputChunk("stdout", "z", 10)]
    assert (result.stdout, result.stdout_dropped_bytes) == ("abcdefz", 4)


async def test_the_start_is_sent_again_with_the_same_id_until_it_is_answered() -> None:
    seen: list[Any] = []

    async def silent(connection: Connection) -> None:
        seen.append(await connection.receive())
        await connection.close(1001)

    async def answer(connection: Connection) -> None:
        seen.append(await connection.begin())
        await connection.exit()

    scripts = [refusal(503, ("Retry-After", "0.01")), silent, refusal(429), answer]
    async with Daemon(*scripts).running() as daemon:
        await run_command(daemon.site(), execute())
    assert len(daemon.connections) == 4
    assert [frame.command_id for frame in seen] == ["c1", "c1"]


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, SandboxAuthenticationError), (403, SandboxAuthenticationError), (400, SandboxConnectionError)],
)
async def test_a_refusal_for_good_is_an_error_at_once(status: int, error: type[Exception]) -> None:
    body = b'{"detail":{"error":"X","message":"because"}}'
    async with Daemon(refusal(status, body=body)).running() as daemon:
        with pytest.raises(error, match=f"{status}: because"):
            await run_command(daemon.site(), execute())
    assert len(daemon.connections) == 1


async def test_a_redirect_is_not_followed() -> None:
    async with (
        Daemon(hello).running() as other,
        Daemon(refusal(302, ("Location", f"http://127.0.0.1:{other.port}/"))).running() as daemon,
    ):
        with pytest.raises(SandboxConnectionError, match="redirect"):
            await run_command(daemon.site(), execute())
        assert not other.connections


async def test_an_address_without_websocket_is_told_apart() -> None:
    async with Daemon(refusal(404)).running() as daemon:
        with pytest.raises(WebSocketMissing) as caught:
            await run_command(daemon.site(), execute())
        assert isinstance(caught.value.error, ResourceNotFoundError)
        with pytest.raises(WebSocketMissing):
            await start_command(daemon.site(), execute())


async def test_the_loss_of_every_connection_is_an_error_in_bounded_time(entered: bool) -> None:
    async def first(connection: Connection) -> None:
        await connection.begin()
        await connection.output("a", 0)
        await connection.cut()

    async def rest(connection: Connection) -> None:
        await connection.begin()
        await connection.cut()

    async with Daemon(first, rest).running() as daemon, anyio.create_task_group() as group:
        handle = await start_command(daemon.site(Owner(group if entered else None)), execute())
        assert (await handle.__anext__()).data == "a"
        with pytest.raises(SandboxConnectionError, match=r"5 tries.*reconnect\('c1'\)"):
            await handle.__anext__()
        with pytest.raises(SandboxConnectionError):
            await handle.result
    assert len(daemon.connections) == 6


@pytest.mark.parametrize(
    "garbage",
    [b"\x81\x03abc", b"\x81\x02[]", b"\xc1\x00", b"\x81\x7f\x00\x00\x01\x00\x00\x00\x00\x00", b"\x81\x85aaaahello"],
    ids=["no JSON", "no object", "reserved bit", "a terabyte", "masked"],
)
async def test_garbage_is_an_error_after_one_try(garbage: bytes) -> None:
    async def script(connection: Connection) -> None:
        await connection.begin()
        await connection.send_bytes(garbage)
        await connection.wait_for_end()

    async with Daemon(script).running() as daemon:
        with pytest.raises(RemoteProtocolError, match="broke the protocol"):
            await run_command(daemon.site(), execute())
    assert len(daemon.connections) == 1


async def test_an_answer_that_is_no_http_is_an_error_at_once() -> None:
    async def script(connection: Connection) -> None:
        await connection.send_bytes(b"220 mail.example ESMTP\r\n")
        await connection.stream.aclose()

    script.refuses = True  # type: ignore[attr-defined]
    async with Daemon(script).running() as daemon:
        with pytest.raises(RemoteProtocolError, match="address of a sandbox service"):
            await run_command(daemon.site(), execute())


async def test_a_server_that_is_not_there_is_an_error_in_bounded_time(free_port: int) -> None:
    daemon = Daemon(hello)
    daemon.port = free_port
    with pytest.raises(SandboxConnectionError, match="could not be started in 6 tries"):
        await run_command(daemon.site(), execute())


async def test_a_peer_that_falls_silent_is_given_up() -> None:
    async def silent(connection: Connection) -> None:
        await connection.begin()
        await anyio.sleep_forever()

    async with Daemon(silent).running() as daemon:
        site = daemon.site(kill_grace=0.1)
        handle = await start_command(site, execute())
        await handle.kill()
        with pytest.raises(SandboxConnectionError, match="exit was not reported"):
            await handle.result


async def test_a_daemon_that_does_not_end_a_command_in_time_is_given_up() -> None:
    async def silent(connection: Connection) -> None:
        await connection.begin()
        await anyio.sleep_forever()

    async with Daemon(silent).running() as daemon:
        with pytest.raises(CommandTimeoutError) as caught:
            await run_command(daemon.site(timeout_grace=0.05), execute(timeout_seconds=0.05))
    assert caught.value.timeout == 0.05


async def test_an_error_frame_becomes_its_error() -> None:
    async def script(connection: Connection) -> None:
        await connection.begin()
        await connection.output("partial", 0)
        await connection.send(ErrorReply(error="took 5 s", error_type="CommandTimeout"))
        await connection.wait_for_end()

    async with Daemon(script).running() as daemon:
        seen: list[str] = []
        with pytest.raises(CommandTimeoutError, match="took 5 s") as caught:
            await run_command(daemon.site(), execute(timeout_seconds=5), on_stdout=seen.append)
    assert seen == ["partial"]
    assert caught.value.timeout == 5


async def test_attaching_to_an_unknown_command_says_so(entered: bool) -> None:
    async def script(connection: Connection) -> None:
        await connection.receive()
        await connection.send(ErrorReply(error="?", error_type="CommandNotFound"))
        await connection.wait_for_end()

    async with Daemon(script).running() as daemon, anyio.create_task_group() as group:
        handle = attach_command(daemon.site(Owner(group if entered else None)), Reconnect(command_id="c9"))
        with pytest.raises(SandboxOperationError, match="Command not found: c9") as caught:
            await handle.result
    assert (caught.value.operation, caught.value.error_type) == ("reconnect", "CommandNotFound")


async def test_closing_a_handle_detaches_and_its_command_runs_on(entered: bool) -> None:
    gone: list[Any] = []

    async def script(connection: Connection) -> None:
        await connection.begin()
        gone.append(await connection.receive())
        gone.append(connection.closed and connection.closed.code)

    async with Daemon(script).running() as daemon, anyio.create_task_group() as group:
        async with await start_command(daemon.site(Owner(group if entered else None)), execute()) as handle:
            assert handle.command_id
        with anyio.fail_after(5):
            while len(gone) < 2:
                await anyio.sleep(0.001)
    assert gone == [None, 1000]


async def test_a_dropped_handle_stays_attached_and_its_output_is_thrown_away() -> None:
    total, size = 400, 32768
    done = anyio.Event()

    async def flood(connection: Connection) -> None:
        await connection.begin()
        for n in range(total):
            await connection.output("x" * size, n * size)
        await connection.send(Exit(exit_code=0))
        done.set()
        await connection.wait_for_end()

    async with Daemon(flood).running() as daemon, anyio.create_task_group() as group:
        handle = await start_command(daemon.site(Owner(group)), execute())
        del handle
        with anyio.fail_after(20):
            await done.wait()


async def test_a_slow_consumer_holds_the_peer_back_and_loses_nothing() -> None:
    total, size = 400, 32768
    sent = 0

    async def flood(connection: Connection) -> None:
        nonlocal sent
        await connection.begin()
        for n in range(total):
            await connection.output("x" * size, n * size)
            sent += 1
        await connection.exit()

    async with Daemon(flood).running() as daemon, anyio.create_task_group() as group:
        handle = await start_command(daemon.site(Owner(group)), execute())
        before = -1
        while sent != before:
            before = sent
            await anyio.sleep(0.1)
        assert before < total
        received = sum([len(chunk.data) async for chunk in handle])
    assert received == total * size
    assert len(daemon.connections) == 1


async def test_a_kill_passes_input_that_the_command_does_not_read() -> None:
    """Input fills the connection; the kill takes a new one."""

    async def deaf(connection: Connection) -> None:
        await connection.begin()
        await anyio.sleep_forever()

    async with Daemon(deaf, forever).running() as daemon, anyio.create_task_group() as group:
        handle = await start_command(daemon.site(Owner(group)), execute(close_stdin=False))
        group.start_soon(handle.send_input, "x" * 2**25)
        await anyio.sleep(0.1)
        await handle.kill()
        with anyio.fail_after(10):
            assert (await handle.result).exit_code == 137


async def test_the_result_of_a_handle_keeps_the_beginning_and_the_end() -> None:
    async def script(connection: Connection) -> None:
        await connection.begin()
        for n in range(100):
            await connection.output(f"{n:04d}", 4 * n)
        await connection.exit()

    async with Daemon(script).running() as daemon:
        result = await run_command(daemon.site(), execute(), max_output_bytes=16)
    assert result.stdout == "0000000100980099"
    assert result.stdout_dropped_bytes == 400 - 16


@pytest.mark.parametrize("pending", range(1, 12))
async def test_cancelling_a_run_at_any_await_leaves_nothing(pending: int) -> None:
    """Cancel at the n-th time that the event loop is entered, whatever the run waits for then."""
    async with Daemon(hello, forever).running() as daemon:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(run_command, daemon.site(), execute())
                for _ in range(pending):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
        site = daemon.site()
        assert not site.drivers
