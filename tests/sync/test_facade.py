"""What the sync facade owes its users, R1 and R5 to R10; R2 to R4 are in the files beside."""

from __future__ import annotations

import asyncio
import gc
import threading
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from sandbox_aio.errors import ClientClosedError, CommandTimeoutError, LocalProtocolError, ResourceNotFoundError
from sandbox_aio.sync import Portal, _bridge
from tests.sync.facade import SandboxClient, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sync.facade import Sandbox


def crossings(client: SandboxClient) -> list[str]:
    """Note what is called on the client's loop from now on."""
    loop = client._bridge._portal.loop()
    seen = []
    original = loop.call_soon_threadsafe

    def count(callback: Any, *args: Any, **kwargs: Any) -> object:
        seen.append(callback.__name__)
        return original(callback, *args, **kwargs)

    setattr(loop, "call_soon_threadsafe", count)  # noqa: B010 - mypy knows that a method is not to be set
    return seen


def test_r1_one_crossing_per_batch(client: SandboxClient, sandbox: Sandbox) -> None:
    handle = sandbox.run("lines 1000", wait=False)
    seen = crossings(client)
    assert sum(1 for _ in handle) == 1000
    assert len(seen) == 11  # ten batches and the end


def test_r1_one_crossing_for_a_run_with_callbacks(client: SandboxClient, sandbox: Sandbox) -> None:
    seen = crossings(client)
    lines: list[str] = []
    sandbox.run("lines 1000", on_stdout=lines.append)
    assert len(lines) == 1000
    assert len(seen) == 1


def test_r1_iteration_goes_on_where_it_stopped(sandbox: Sandbox) -> None:
    handle = sandbox.run("lines 250", wait=False)
    for chunk in handle:
        if chunk.offset > 500:
            break
    offset = chunk.offset + len(chunk.data)
    assert next(iter(handle)).offset == offset
    assert handle.next_batch()
    rest = list(handle)
    assert rest[-1].data == "line 0\n"
    assert list(handle) == []


def test_r1_slow_callbacks_hold_the_command_back(client: SandboxClient, sandbox: Sandbox) -> None:
    line = "x" * (1 << 19)
    gate = threading.Event()
    seen: list[str] = []

    def slow(text: str) -> None:
        seen.append(text)
        gate.wait(10)

    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(sandbox.run, f"repeat {line}", on_stdout=slow)
        until(lambda: seen)
        before = client.fills
        assert before <= 4  # and not 20
        gate.set()
        assert run.result(10).exit_code == 0
    assert len(seen) == 20


def test_r5_callbacks_run_on_the_callers_thread_and_may_call_the_facade(sandbox: Sandbox) -> None:
    seen: list[tuple[threading.Thread, str]] = []

    def callback(text: str) -> None:
        seen.append((threading.current_thread(), sandbox.run(f"echo {text.strip()}").stdout))

    sandbox.run("lines 2", on_stdout=callback)
    assert seen == [(threading.current_thread(), "line 0"), (threading.current_thread(), "line 0")]


def test_r5_an_exception_in_a_callback_cancels_the_command(client: SandboxClient, sandbox: Sandbox) -> None:
    def callback(_: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sandbox.run("lines 10000000", on_stdout=callback)
    assert client.fills < 2_000  # of 100,000: the backlog is bounded
    assert sandbox.run("echo usable").stdout == "usable"


def test_r5_a_coroutine_function_is_no_callback(sandbox: Sandbox) -> None:
    async def callback(_: str) -> None: ...

    with pytest.raises(TypeError, match="plain functions"):
        sandbox.run("echo hi", on_stdout=callback)


def test_r6_on_its_own_loop_it_raises_a_clear_error(client: SandboxClient) -> None:
    client.list_sandboxes()

    async def call() -> None:
        client.list_sandboxes()

    with pytest.raises(LocalProtocolError, match="own event loop"):
        client._bridge.call(call)

    async def close() -> None:
        client.close()

    with pytest.raises(LocalProtocolError, match="own event loop"):
        client._bridge.call(close)
    assert len(client.list_sandboxes()) == 2


@pytest.mark.parametrize("run", [asyncio.run, trio.run])
def test_inside_a_running_loop_it_warns_once(
    run: Callable[..., object], sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bridge, "_warned_inside_a_loop", False)

    async def call() -> None:
        with pytest.warns(RuntimeWarning, match="blocks that loop") as caught:
            assert sandbox.run("echo hi").stdout == "hi"
        assert caught[0].filename == __file__
        assert sandbox.run("echo hi").stdout == "hi"

    run(call() if run is asyncio.run else call)


@pytest.mark.parametrize("fail", [
    lambda sandbox: sandbox.read("/nothing"),
    lambda sandbox: sandbox.run("time-out"),
    lambda sandbox: list(sandbox.run("time-out", wait=False)),
    lambda sandbox: sandbox.run("time-out", wait=False).result,
    lambda sandbox: sandbox.run("echo hi", on_stdout=lambda _: 1 / 0),
    lambda sandbox: sandbox.run(),
])  # fmt: skip
def test_r7_its_own_frames_are_trimmed(fail: Callable[[Sandbox], object], sandbox: Sandbox) -> None:
    with pytest.raises(Exception) as caught:
        fail(sandbox)
    files = [Path(frame.filename).parent.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert files[:2] == ["sync", "sync"]  # this file, twice: tests/sync
    package = str(Path(_bridge.__file__).parent)
    assert not [
        frame for frame in traceback.extract_tb(caught.value.__traceback__) if frame.filename.startswith(package)
    ]


def test_r7_what_the_client_says_when_it_is_closed_has_no_frames_of_ours(client: SandboxClient) -> None:
    client.close()
    with pytest.raises(ClientClosedError) as caught:
        client.list_sandboxes()
    assert [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)] == [__file__]


def test_r8_errors_arrive_with_type_and_attributes(sandbox: Sandbox) -> None:
    with pytest.raises(ResourceNotFoundError) as missing:
        sandbox.read("/nothing")
    assert missing.value.resource_type == "file"
    with pytest.raises(CommandTimeoutError) as late:
        sandbox.run("time-out")
    assert (late.value.timeout, late.value.error_type) == (1.5, "CommandTimeout")


def test_r8_an_error_keeps_neither_the_client_nor_itself_alive(sandbox: Sandbox) -> None:
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ResourceNotFoundError) as caught:
            sandbox.read("/nothing")
        error = weakref.ref(caught.value)
        del caught
        assert error() is None
    finally:
        gc.enable()


def test_r9_kill_and_iteration_from_different_threads(client: SandboxClient, sandbox: Sandbox) -> None:
    handle = sandbox.run("hang", wait=False)
    with ThreadPoolExecutor(1) as pool:
        iteration = pool.submit(list, handle)
        until(lambda: client.fills)
        handle.kill()
        assert iteration.result(10) == []


def test_r9_stdin_and_iteration_from_different_threads(sandbox: Sandbox) -> None:
    handle = sandbox.run("cat", wait=False)
    with ThreadPoolExecutor(1) as pool:
        iteration = pool.submit(lambda: [chunk.data for chunk in handle])
        handle.send_input("a")
        handle.send_input("b")
        handle.close_input()
        assert "".join(iteration.result(10)) == "ab"


def test_r9_many_threads_share_an_iteration(sandbox: Sandbox) -> None:
    handle = sandbox.run("lines 5000", wait=False)
    with ThreadPoolExecutor(8) as pool:
        parts = [pool.submit(lambda: [chunk.offset for chunk in handle]) for _ in range(8)]
    offsets = [offset for part in parts for offset in part.result()]
    assert len(offsets) == len(set(offsets)) == 5000


def test_r9_a_thousand_threads(client: SandboxClient, sandbox: Sandbox) -> None:
    barrier = threading.Barrier(1000)
    wrong: list[object] = []

    def work(number: int) -> None:
        barrier.wait()
        wrong.extend(got for _ in range(3) if (got := sandbox.run(f"echo {number}").stdout) != str(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong
    assert len(client.log) == 1 + 3000


def test_r10_one_named_thread_per_client() -> None:
    with SandboxClient() as one, SandboxClient() as two:
        one.list_sandboxes()
        two.list_sandboxes()
        names = {thread.name for thread in threading.enumerate() if thread.name.startswith("sandbox-aio-portal-")}
        assert len(names) == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sandbox-aio-portal-")]


def test_r10_clients_may_share_a_thread() -> None:
    with Portal(name="shared") as portal:
        with SandboxClient(portal=portal) as one:
            one.list_sandboxes()
            with SandboxClient(portal=portal) as two:
                two.list_sandboxes()
                assert [thread.name for thread in threading.enumerate()].count("shared") == 1
            with pytest.raises(ClientClosedError):
                two.list_sandboxes()
            assert one.get_sandbox("box").run("echo still").stdout == "still"
    with pytest.raises(ClientClosedError):
        one.list_sandboxes()
    assert "shared" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(ClientClosedError):
        SandboxClient(portal=portal).list_sandboxes()


def test_context_variables_are_the_callers(client: SandboxClient) -> None:
    variable: ContextVar[str] = ContextVar("variable")
    variable.set("mine")

    async def get() -> str:
        return variable.get()

    assert client._bridge.call(get) == "mine"


def test_repr_names_the_twin(sandbox: Sandbox) -> None:
    assert repr(sandbox) == "Sandbox('box')"
