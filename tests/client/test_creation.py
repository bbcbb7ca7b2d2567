"""Wherever the making or using of a sandbox is cut short, no sandbox is left, and no stranger's is deleted."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from sandbox_aio import (
    AsyncSandboxClient,
    LocalProtocolError,
    RequestTimeoutError,
    ResourceAlreadyExistsError,
    ResourceCreationError,
    ResourceTimeoutError,
    SandboxClientError,
)
from sandbox_aio.client import creation
from tests.client.checkpoints import cancel_at
from tests.client.fake_control_plane import BASE, FakeControlPlane
from tests.client.fake_service import FakeService, Reply, error, fake_service

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def service() -> AsyncGenerator[tuple[FakeControlPlane, AsyncSandboxClient, FakeService]]:
    """A control plane and a client of it; afterwards every connection must be closed."""
    plane = FakeControlPlane()
    async with fake_service(plane) as server:
        async with AsyncSandboxClient(api_endpoint=f"{server.url}{BASE}", api_key="k") as client:
            yield plane, client, server
        with anyio.fail_after(5):
            while server.open:
                await anyio.sleep(0.01)


async def enter(client: AsyncSandboxClient) -> None:
    async with client.sandbox() as sandbox:
        await anyio.lowlevel.checkpoint()
        assert sandbox.status == "ready"


async def await_and_enter(client: AsyncSandboxClient) -> None:
    async with await client.sandbox(name="mine"):
        await anyio.lowlevel.checkpoint()


async def use_and_list(client: AsyncSandboxClient) -> None:
    async with client.sandbox():
        await client.list_sandboxes()


@pytest.mark.parametrize("use", [enter, await_and_enter, use_and_list])
async def test_cancelled_at_any_await_it_leaves_no_sandbox(
    use: Callable[[AsyncSandboxClient], Awaitable[None]],
) -> None:
    number, running = 0, True
    while running:
        async with service() as (plane, client, _):
            with anyio.fail_after(10):
                running = await cancel_at(number, lambda client=client: use(client))  # type: ignore[misc]
            assert plane.boxes == {}
            assert plane.deleted == plane.created
        number += 1
    assert number > 5


@pytest.mark.parametrize("phase", ["before_record", "before_ready"])
@pytest.mark.parametrize("name", [None, "mine"])
async def test_cancelled_while_the_server_makes_it(phase: str, name: str | None) -> None:
    """The deletion must not overtake the creation."""
    async with service() as (plane, client, _):
        setattr(plane, phase, lambda: anyio.sleep(0.3))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.sandbox(name=name).__aenter__)
            await plane.arrived.wait()
            tasks.cancel_scope.cancel()
        assert len(plane.created) == 1
        assert plane.boxes == {}


@pytest.mark.parametrize("phase", ["before_record", "before_ready"])
@pytest.mark.parametrize("name", [None, "mine"])
async def test_cancelled_while_the_server_takes_longer_than_we_wait(
    phase: str, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creation, "_ANSWER_SECONDS", 0.1)
    async with service() as (plane, client, _):
        setattr(plane, phase, lambda: anyio.sleep(0.4))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.sandbox(name=name).__aenter__)
            await plane.arrived.wait()
            started = anyio.current_time()
            tasks.cancel_scope.cancel()
        assert anyio.current_time() - started < creation.CLEAN_UP_SECONDS
        assert len(plane.created) == 1
        assert plane.boxes == {}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_cancelled_by_asyncio_itself() -> None:
    async with service() as (plane, client, _):
        plane.before_ready = lambda: anyio.sleep(0.2)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), client.sandbox():
                raise AssertionError
        assert len(plane.created) == 1
        assert plane.boxes == {}
        task = asyncio.create_task(enter(client))
        plane.arrived = anyio.Event()
        await plane.arrived.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(plane.created) == 2
        assert plane.boxes == {}


async def test_a_server_that_hangs_holds_a_cancelled_caller_up_only_so_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(creation, "_ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(creation, "CLEAN_UP_SECONDS", 0.3)
    async with service() as (plane, client, _):
        plane.before_record = plane.released.wait
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.sandbox().__aenter__)
            await plane.arrived.wait()
            started = anyio.current_time()
            tasks.cancel_scope.cancel()
        assert 0.3 <= anyio.current_time() - started < 2
        assert "may be left behind" in caplog.text
        plane.released.set()


async def test_a_name_that_is_taken_is_an_error_and_its_owner_keeps_the_sandbox() -> None:
    async with service() as (plane, client, _):
        await client.create_sandbox(name="mine")
        with pytest.raises(ResourceAlreadyExistsError):
            async with client.sandbox(name="mine"):
                raise AssertionError
        assert list(plane.boxes) == ["mine"]


async def test_cancelled_while_a_name_is_found_to_be_taken_nothing_is_deleted() -> None:
    async with service() as (plane, client, _):
        await client.create_sandbox(name="mine")
        plane.arrived = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.sandbox(name="mine").__aenter__)
            await plane.arrived.wait()
            tasks.cancel_scope.cancel()
        assert list(plane.boxes) == ["mine"]


async def test_an_unanswered_creation_never_deletes_a_sandbox_that_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(creation, "_ANSWER_SECONDS", 0.0)
    async with service() as (plane, client, _):
        plane.boxes["mine"] = {"name": "mine", "status": "ready"}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.sandbox(name="mine").__aenter__)
            tasks.cancel_scope.cancel()
        assert list(plane.boxes) == ["mine"]


@pytest.mark.parametrize("answer", [error(408), error(422, "ImagePull"), error(500), Reply(raw=b"garbage\r\n\r\n")])
async def test_what_failed_under_a_name_of_ours_is_deleted(answer: Reply) -> None:
    async with service() as (plane, client, _):
        plane.answers = [answer]
        with pytest.raises(SandboxClientError) as caught:
            await client.create_sandbox()
        assert not isinstance(caught.value, ResourceTimeoutError | ResourceCreationError) or caught.value.resource_type
        assert plane.deleted == plane.created
        assert len(plane.created) == 1


async def test_what_is_not_ready_under_a_name_of_the_callers_stays() -> None:
    async with service() as (plane, client, _):
        plane.answers = [error(408)]
        with pytest.raises(ResourceTimeoutError):
            await client.create_sandbox(name="mine")
        assert list(plane.boxes) == ["mine"]


@pytest.mark.parametrize("answer", [error(502), error(504), Reply(raw=b""), Reply(json={}, cut_after=0)])
async def test_a_creation_of_unknown_outcome_is_sent_again_and_finds_its_own_sandbox(answer: Reply) -> None:
    async with service() as (plane, client, _):
        plane.answers = [answer]
        sandbox = await client.create_sandbox()
        assert plane.created == [sandbox.name]
        assert sandbox.status == "ready"
        assert plane.deleted == []


async def test_a_creation_of_unknown_outcome_is_not_sent_again_under_a_name_that_others_may_use() -> None:
    async with service() as (plane, client, _):
        plane.answers = [error(502)]
        with pytest.raises(SandboxClientError):
            await client.create_sandbox(name="mine")
        assert plane.created == ["mine"]


async def test_a_creation_without_answer_is_bounded_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox_aio.protocol.http_requests._CREATE_MARGIN", 0.2)
    async with service() as (plane, client, _):
        plane.before_ready = plane.released.wait
        with anyio.fail_after(5), pytest.raises(RequestTimeoutError):
            await client.create_sandbox(timeout=0)
        assert plane.boxes == {}
        assert len(plane.created) == 1
        plane.released.set()


async def test_a_pending_sandbox_is_made_once() -> None:
    async with service() as (plane, client, _):
        pending = client.sandbox()
        async with pending as sandbox:
            assert sandbox.name.startswith("sandbox-")
            with pytest.raises(LocalProtocolError, match=r"call client\.sandbox"):
                await pending
        assert plane.deleted == [sandbox.name]


async def test_the_body_s_exception_comes_through_as_itself() -> None:
    async with service() as (plane, client, _):
        with pytest.raises(ZeroDivisionError):
            async with client.sandbox():
                _ = 1 / 0
        assert plane.deleted == plane.created


async def test_deleting_it_oneself_is_fine() -> None:
    async with service() as (plane, client, _):
        async with client.sandbox() as sandbox:
            await sandbox.delete()
        assert plane.deleted == plane.created


async def test_a_failed_deletion_at_the_end_is_logged_and_not_raised(caplog: pytest.LogCaptureFixture) -> None:
    async with service() as (plane, client, _):
        with caplog.at_level(logging.WARNING):
            async with client.sandbox() as sandbox:
                await client.aclose()
        assert f"the sandbox {sandbox.name!r} may be left behind" in caplog.text
        assert list(plane.boxes) == [sandbox.name]


async def test_sandboxes_that_were_only_looked_up_stay() -> None:
    async with service() as (plane, client, _):
        async with await client.create_sandbox(name="mine"):
            pass
        async with await client.get_sandbox("mine"):
            pass
        assert list(plane.boxes) == ["mine"]
