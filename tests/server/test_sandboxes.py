"""The life of a sandbox, as a table and under everything at once."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Literal

import pytest

from sandbox_aio.server.errors import ApiError
from sandbox_aio.server.sandbox import TRANSITIONS, Change, Failure, Sandbox, Settings, Status
from sandbox_aio.server.sandboxes import NewSandbox, SandboxRegistry
from sandbox_aio.server.snapshot import snapshot_of_base
from tests.server.fakes import HOST, FakeRuntime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio


def sandbox(status: Status) -> Sandbox:
    return Sandbox(id="i", name="n", snapshot_id=HOST.id, base=HOST.id, settings=Settings(), secret="s", status=status)


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("change", Change)
def test_only_what_the_table_has_happens(status: Status, change: Change) -> None:
    after = sandbox(status).after(change, failure=Failure("Kind", "words") if change is Change.BROKE else None)
    expected = TRANSITIONS[status].get(change)
    assert (after.status if after else None) == expected
    if after is not None:
        assert (after.stopped_at is not None) == (after.status is Status.STOPPED)
        assert (after.failure is not None) == (after.status is Status.FAILED)


def test_every_state_can_be_left_for_good() -> None:
    for status in Status:
        assert status is Status.DELETING or TRANSITIONS[status][Change.DELETE] is Status.DELETING


class Attached:
    """Records who was told that a sandbox goes."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    async def detach(self, id: str, why: Literal["stopped", "deleted"]) -> None:
        self.told.append((id, why))


@pytest.fixture
async def registry(runtime: FakeRuntime) -> AsyncIterator[SandboxRegistry]:
    registry = SandboxRegistry(runtime, detach=Attached().detach)
    yield registry
    await registry.aclose()
    await runtime.aclose(destroy=True)


def new(name: str | None = None) -> NewSandbox:
    return NewSandbox(name=name, snapshot=snapshot_of_base(HOST), settings=Settings())


async def test_everything_at_once_ends_in_nothing(registry: SandboxRegistry, runtime: FakeRuntime) -> None:
    box = registry.create(new("busy"))

    async def attempt(action: str) -> None:
        try:
            match action:
                case "start":
                    registry.start(box.id)
                case "stop":
                    await registry.stop(box.id)
                case "daemon":
                    await registry.daemon(box.id)
                case "delete":
                    await registry.delete(box.id)
        except ApiError as error:
            assert error.status in (400, 404)

    await asyncio.gather(*map(attempt, ["daemon", "stop", "daemon", "start", "stop", "daemon"] * 5))
    found, address = await registry.daemon("busy")
    assert found.status is Status.READY
    assert address.secret == box.secret
    await asyncio.gather(*map(attempt, ["stop", "daemon", "delete", "start", "delete", "daemon", "stop"] * 5))
    assert registry.list() == []
    assert runtime.daemons == {}
    assert [call for call, _ in runtime.calls].count("destroy") == 1
    calls = [call for call, _ in runtime.calls if call in ("start", "stop")]
    assert all(first != second for first, second in itertools.pairwise(calls))  # One thing at a time.


async def test_a_caller_that_is_cancelled_changes_nothing_else(registry: SandboxRegistry, runtime: FakeRuntime) -> None:
    runtime.gate.clear()
    box = registry.create(new())
    waiting = [asyncio.create_task(registry.daemon(box.id)), asyncio.create_task(registry.wait_started(box.id))]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    runtime.gate.set()
    assert (await registry.daemon(box.id))[0].status is Status.READY
    deleting = asyncio.create_task(registry.delete(box.id))
    await asyncio.sleep(0)
    deleting.cancel()
    await asyncio.wait({deleting})
    await registry.aclose()
    assert registry.list() == []


async def test_a_sandbox_deleted_while_it_starts_is_gone(registry: SandboxRegistry, runtime: FakeRuntime) -> None:
    runtime.gate.clear()
    box = registry.create(new())
    deleting = asyncio.create_task(registry.delete(box.id))
    await asyncio.sleep(0)
    assert registry.get(box.id).status is Status.DELETING
    runtime.gate.set()
    await deleting
    with pytest.raises(ApiError, match="404"):
        await registry.daemon(box.id)


async def test_a_fault_of_the_runtime_fails_the_sandbox(
    registry: SandboxRegistry, runtime: FakeRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.fail = ZeroDivisionError("surprise")  # type: ignore[assignment]
    box = await registry.wait_started(registry.create(new()).id)
    assert box.failure is not None
    assert box.failure.kind == "InternalError"
    assert "surprise" not in box.failure.message
    assert "surprise" in caplog.text
    runtime.fail = None
    registry.start(box.id)
    assert (await registry.wait_started(box.id)).status is Status.READY
