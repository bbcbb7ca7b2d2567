"""How sync clients, sandboxes and handles begin and end: by `with` or not, closed by others, dropped, interrupted."""

from __future__ import annotations

import gc
import threading
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from sandbox_aio.errors import ClientClosedError, ResourceNotFoundError
from sandbox_aio.sync import Portal, _call
from sandbox_aio.sync._call import Call
from tests.sync.facade import SandboxClient, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sync.facade import CommandHandle, Sandbox


def test_a_client_works_without_with() -> None:
    client = SandboxClient()
    assert client.get_sandbox("box").run("echo hi").stdout == "hi"
    client.close()
    client.close()
    assert client.log == ["open", "run echo hi", "closed"]


def test_a_client_that_was_never_used_closes() -> None:
    client = SandboxClient()
    client.close()
    with pytest.raises(ClientClosedError):
        client.list_sandboxes()


def test_with_deletes_the_sandbox(client: SandboxClient) -> None:
    with pytest.raises(ZeroDivisionError), client.sandbox():
        raise ZeroDivisionError
    assert client.log == ["open", "create box", "delete box"]


def test_what_passes_through_a_with_keeps_its_traceback(client: SandboxClient) -> None:
    class Group:
        """Raises again what it gets, as a task group does."""

        async def __aenter__(self) -> None: ...

        async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
            assert error is not None
            raise error

    stay = client._bridge.enter(Group())
    with pytest.raises(ZeroDivisionError) as caught:
        try:
            raise ZeroDivisionError
        except ZeroDivisionError as error:
            assert not stay.exit(ZeroDivisionError, error, error.__traceback__)
            raise
    assert len(traceback.extract_tb(caught.value.__traceback__)) == 1


def test_an_error_of_leaving_arrives(client: SandboxClient) -> None:
    class Broken:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *exc_info: object) -> None:
            raise ResourceNotFoundError("gone", resource_type="sandbox")

    stay = client._bridge.enter(Broken())
    with pytest.raises(ResourceNotFoundError, match="gone"):
        stay.exit()
    stay.exit()


def test_with_may_be_nested(client: SandboxClient, sandbox: Sandbox) -> None:
    with sandbox, sandbox, sandbox.run("hang", wait=False) as handle:
        assert handle.pid == 41
    assert client.log == ["open", "run hang", "detach"]


@pytest.mark.parametrize("wait", [
    lambda sandbox, _: sandbox.run("hang"),
    lambda _, handle: list(handle),
    lambda _, handle: handle.result,
    lambda sandbox, _: sandbox.run("hang", on_stdout=print),
])  # fmt: skip
def test_closing_ends_the_calls_of_other_threads(wait: Callable[[Sandbox, CommandHandle], object]) -> None:
    client = SandboxClient()
    sandbox = client.sandbox()
    with sandbox, ThreadPoolExecutor(8) as pool:
        handle = sandbox.run("hang", wait=False)
        calls = [pool.submit(wait, sandbox, handle) for _ in range(8)]
        until(lambda: client.fills)
        client.close()
        for call in calls:
            assert isinstance(call.exception(10), ClientClosedError)
    assert client.log[-2:] == ["delete box", "closed"]


def test_an_interrupt_while_the_client_is_entered_leaves_it_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    client = SandboxClient()

    def interrupted(call: Call) -> object:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(Call, "_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.list_sandboxes()
    assert len(client.list_sandboxes()) == 2
    client.close()
    assert client.log == ["open", "closed"]


def test_an_interrupt_before_the_client_is_entered_leaves_it_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    client, threads = SandboxClient(), threading.active_count()

    def interrupted(*_: object) -> bool:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(Portal, "soon", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.list_sandboxes()
    assert len(client.list_sandboxes()) == 2
    client.close()
    assert threading.active_count() <= threads


def test_a_client_that_cannot_be_entered_says_why_and_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    client = SandboxClient()

    async def refuse(_: object) -> None:
        raise ResourceNotFoundError("no service")

    monkeypatch.setattr(type(client._async), "__aenter__", refuse)
    with pytest.raises(ResourceNotFoundError, match="no service"):
        client.list_sandboxes()
    monkeypatch.undo()
    assert len(client.list_sandboxes()) == 2
    client.close()


def test_many_threads_may_close() -> None:
    client = SandboxClient()
    client.list_sandboxes()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: client.close(), range(8)))
    assert client.log == ["open", "closed"]


def test_an_abandoned_iteration_is_collected(sandbox: Sandbox) -> None:
    handle = sandbox.run("lines 100", wait=False)
    for _ in handle:
        break
    dropped = weakref.ref(handle)
    del handle
    gc.collect()
    assert dropped() is None


def test_an_interrupt_that_comes_too_late_to_cancel_deletes_the_sandbox(
    client: SandboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.list_sandboxes()

    def interrupted(call: Call) -> object:
        monkeypatch.undo()
        result(call)
        raise KeyboardInterrupt

    result = Call.result
    monkeypatch.setattr(Call, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.sandbox()
    assert client.log == ["open", "create box", "delete box"]


def test_a_client_that_is_collected_leaves_a_shared_thread_to_the_others() -> None:
    with Portal() as portal, SandboxClient(portal=portal) as other:
        dropped = SandboxClient(portal=portal)
        log = dropped.log
        dropped.list_sandboxes()
        with pytest.warns(ResourceWarning, match="SandboxClient was never closed"):
            del dropped
            gc.collect()
        until(lambda: log == ["open", "closed"])
        assert len(other.list_sandboxes()) == 2


def test_a_call_that_comes_as_the_loop_ends_is_refused(client: SandboxClient, monkeypatch: pytest.MonkeyPatch) -> None:
    client.list_sandboxes()
    with monkeypatch.context() as late:
        late.setattr(Portal, "soon", lambda *_: False)
        with pytest.raises(ClientClosedError, match="during this call"):
            client.list_sandboxes()
    assert len(client.list_sandboxes()) == 2


def test_where_a_lock_cannot_be_interrupted_the_wait_is_cut_into_pieces(
    client: SandboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_call, "POLL_SECONDS", 0.01)
    assert client.sandbox(name="slow").name == "slow"
