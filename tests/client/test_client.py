"""The client's calls about sandboxes and snapshots, its settings, and its end."""

from __future__ import annotations

import gc
import weakref
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from sandbox_aio import (
    AsyncSandboxClient,
    ClientClosedError,
    LocalProtocolError,
    RemoteProtocolError,
    ResourceCreationError,
    ResourceNameConflictError,
    ResourceNotFoundError,
    ResourceStatus,
    ResourceTimeoutError,
    RunConfig,
    SandboxAPIError,
    SandboxAuthenticationError,
)
from sandbox_aio.client.sandbox import AsyncSandbox
from tests.client.fake_control_plane import BASE, FakeControlPlane
from tests.client.fake_service import FakeService, Reply, Request, error, fake_service

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LANGSMITH_ENDPOINT", "LANGCHAIN_ENDPOINT", "LANGSMITH_API_KEY", "LANGCHAIN_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@asynccontextmanager
async def service() -> AsyncGenerator[tuple[FakeControlPlane, AsyncSandboxClient, FakeService]]:
    plane = FakeControlPlane()
    async with (
        fake_service(plane) as server,
        AsyncSandboxClient(api_endpoint=f"{server.url}{BASE}/", api_key="k", headers={"X-Extra": "1"}) as client,
    ):
        yield plane, client, server


async def test_configuration_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = FakeControlPlane()
    async with fake_service(plane) as server:
        monkeypatch.setenv("LANGSMITH_ENDPOINT", f"{server.url}/api/v1")
        monkeypatch.setenv("LANGSMITH_API_KEY", "from-environment\n")
        async with AsyncSandboxClient() as client:
            assert await client.list_sandboxes() == []
            assert f"{server.url}{BASE}" in repr(client)
        (request,) = server.requests
        assert request.target == f"{BASE}/boxes"
        assert request.headers["x-api-key"] == "from-environment"


async def test_a_key_is_not_needed_and_not_sent() -> None:
    plane = FakeControlPlane()
    async with fake_service(plane) as server, AsyncSandboxClient(api_endpoint=f"{server.url}{BASE}") as client:
        await client.list_sandboxes()
        assert "x-api-key" not in server.requests[0].headers


async def test_headers_of_a_call_override_those_of_the_client() -> None:
    async with service() as (_, client, server):
        await client.list_sandboxes(headers={"X-API-KEY": "other", "x-extra": "2"})
        await client.list_sandboxes()
        sent = [(r.headers["x-api-key"], r.headers["x-extra"]) for r in server.requests]
        assert sent == [("other", "2"), ("k", "1")]


async def test_wrong_settings_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="api_endpoint must be"):
        AsyncSandboxClient(api_endpoint="not a url")
    with pytest.raises(ValueError, match="the API key has characters"):
        AsyncSandboxClient(api_key="a\nb")
    with pytest.raises(ValueError, match="not the name of an HTTP header"):
        AsyncSandboxClient(headers={"": "x"})


async def test_the_life_of_a_sandbox() -> None:
    async with service() as (plane, client, _):
        sandbox = await client.create_sandbox(name="mine", labels={"a": "b"}, run_config=RunConfig("me"))
        assert (sandbox.name, sandbox.id, sandbox.status) == ("mine", "id-mine", "ready")
        assert repr(sandbox) == "AsyncSandbox(name='mine', id='id-mine', status='ready')"
        assert (await client.get_sandbox("mine")).id == "id-mine"
        assert [box.name for box in await client.list_sandboxes()] == ["mine"]
        assert await client.get_sandbox_status("mine") == ResourceStatus("ready")
        await sandbox.stop()
        assert (sandbox.status, sandbox.dataplane_url) == ("stopped", "http://d")
        assert plane.boxes["mine"]["status"] == "stopped"
        await sandbox.start()
        assert sandbox.status == "ready"
        renamed = await client.update_sandbox("mine", new_name="yours", idle_ttl_seconds=60)
        assert renamed.name == "yours"
        assert plane.boxes["yours"]["idle_ttl_seconds"] == 60
        await renamed.delete()
        for missing in (
            client.get_sandbox("yours"),
            client.delete_sandbox("yours"),
            client.get_sandbox_status("yours"),
            client.start_sandbox("yours"),
            client.stop_sandbox("yours"),
            client.update_sandbox("yours"),
            client.wait_for_sandbox("yours"),
        ):
            with pytest.raises(ResourceNotFoundError) as caught:
                await missing
            assert caught.value.resource_type == "sandbox"


async def test_create_without_waiting_and_wait_later() -> None:
    async with service() as (plane, client, server):
        sandbox = await client.create_sandbox(name="mine", wait_for_ready=False)
        assert sandbox.status == "provisioning"
        server.requests.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.wait_for_sandbox, "mine")
            await anyio.sleep(0.3)
            plane.boxes["mine"]["status"] = "ready"
        looks = [request.target for request in server.requests]
        assert 3 <= len(looks) <= 8, "often at first"
        assert looks[-1] == f"{BASE}/boxes/mine"


async def test_waiting_ends_in_typed_errors() -> None:
    async with service() as (plane, client, server):
        await client.create_sandbox(name="mine", wait_for_ready=False)
        with pytest.raises(ResourceTimeoutError, match=r"not ready within 0\.1 s \(last_status: provisioning\)"):
            await client.wait_for_sandbox("mine", timeout=0.1)
        server.requests.clear()
        with pytest.raises(ResourceTimeoutError):
            await client.wait_for_sandbox("mine", timeout=0)
        assert len(server.requests) == 1
        plane.boxes["mine"]["status"] = "failed"
        with pytest.raises(ResourceCreationError, match="the sandbox 'mine' failed to become ready"):
            await client.wait_for_sandbox("mine")


async def test_snapshots() -> None:
    statuses = ["building", "ready", "failed", "building"]

    async def handler(request: Request) -> Reply:
        snapshot = {"id": "1", "name": "host", "status": statuses[0], "status_message": "no disk"}
        return Reply(json={"snapshots": [snapshot], **snapshot})

    async with fake_service(handler) as server, AsyncSandboxClient(api_endpoint=server.url) as client:
        (snapshot,) = await client.list_snapshots(name_contains="ho", limit=1, offset=0)
        assert snapshot == await client.get_snapshot("host:latest")
        assert [request.target for request in server.requests] == [
            "/snapshots?name_contains=ho&limit=1&offset=0",
            "/snapshots/host:latest",
        ]
        with pytest.raises(ResourceTimeoutError, match="last_status: building"):
            await client.wait_for_snapshot("host", timeout=0)
        del statuses[0]
        assert (await client.wait_for_snapshot("host")).status == "ready"
        del statuses[0]
        with pytest.raises(ResourceCreationError, match="no disk"):
            await client.wait_for_snapshot("host")


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (error(401, "Unauthorized", "unknown key"), SandboxAuthenticationError),
        (error(404), SandboxAPIError),
        (Reply(body=b"<html>"), RemoteProtocolError),
        (Reply(json=[1]), RemoteProtocolError),
        (Reply(json={"sandboxes": [{"nam": 1}]}), RemoteProtocolError),
    ],
)
async def test_answers_that_help_nobody(reply: Reply, kind: type[Exception]) -> None:
    async def handler(request: Request) -> Reply:
        return reply

    async with fake_service(handler) as server, AsyncSandboxClient(api_endpoint=server.url) as client:
        with pytest.raises(kind):
            await client.list_sandboxes()


async def test_a_rename_to_a_name_that_is_taken() -> None:
    async def handler(request: Request) -> Reply:
        return error(409)

    async with fake_service(handler) as server, AsyncSandboxClient(api_endpoint=server.url) as client:
        with pytest.raises(ResourceNameConflictError):
            await client.update_sandbox("a", new_name="b")


async def test_arguments_are_checked_before_anything_is_sent() -> None:
    async with service() as (_, client, server):
        with pytest.raises(ValueError, match="multiple of 60"):
            await client.create_sandbox(idle_ttl_seconds=30)
        with pytest.raises(ValueError, match="name the snapshot once"):
            await client.sandbox("a", snapshot="b")
        with pytest.raises(ValueError, match="multiple of 60"):
            await client.update_sandbox("a", delete_after_stop_seconds=1)
        with pytest.raises(ValueError, match="not the name of a sandbox"):
            await client.get_sandbox("")
        assert server.requests == []


async def test_a_closed_client_says_so() -> None:
    async with service() as (_, client, _):
        sandbox = await client.create_sandbox(name="mine")
        await client.aclose()
        for attempt in (client.list_sandboxes(), sandbox.run("true"), sandbox.read("/a"), client.__aenter__()):
            with pytest.raises(ClientClosedError, match="make a new one"):
                await attempt


async def test_closing_it_early_does_not_disturb_the_block() -> None:
    async with service() as (_, client, _):
        await client.list_sandboxes()
        await client.aclose()
        await anyio.sleep(0.01)
        went_on = True
    assert went_on


async def test_a_data_plane_that_is_no_url_is_the_servers_mistake() -> None:
    async with AsyncSandboxClient(api_endpoint="http://h") as client:
        sandbox = AsyncSandbox.from_dict({"name": "box", "dataplane_url": "gopher://d"}, client)
        with pytest.raises(RemoteProtocolError, match="'box' has a dataplane_url that is none"):
            await sandbox.run("true")


async def test_it_is_entered_once() -> None:
    async with service() as (_, client, _):
        with pytest.raises(LocalProtocolError, match="entered already"):
            await client.__aenter__()


async def test_without_async_with_it_works_and_complains_at_its_end() -> None:
    async with fake_service(FakeControlPlane()) as server:
        client = AsyncSandboxClient(api_endpoint=f"{server.url}{BASE}")
        assert await client.list_sandboxes() == []
        await client.aclose()
        gone = weakref.ref(client)
        del client
        gc.collect()
        assert gone() is None

        forgotten = AsyncSandboxClient(api_endpoint=f"{server.url}{BASE}")
        await forgotten.list_sandboxes()
        pool = forgotten._service.http.pool
        with pytest.warns(ResourceWarning, match=r"was never closed: use it in `async with`"):
            del forgotten
            gc.collect()
        await pool.aclose()


async def test_a_client_that_did_nothing_needs_no_closing() -> None:
    AsyncSandboxClient(api_endpoint="http://h")
    gc.collect()


async def test_the_body_s_exception_comes_through_as_itself() -> None:
    with pytest.raises(ZeroDivisionError):
        async with AsyncSandboxClient(api_endpoint="http://h"):
            _ = 1 / 0


async def test_the_body_s_group_of_exceptions_comes_through_as_itself() -> None:
    group = ExceptionGroup("two", [ValueError("a"), TypeError("b")])
    with pytest.raises(ExceptionGroup) as caught:
        async with AsyncSandboxClient(api_endpoint="http://h"):
            raise group
    assert caught.value is group


async def test_an_outer_cancellation_is_not_swallowed() -> None:
    with anyio.CancelScope() as scope:
        async with AsyncSandboxClient(api_endpoint="http://h"):
            scope.cancel()
            await anyio.sleep_forever()
        raise AssertionError
    assert scope.cancelled_caught


async def test_background_work_ends_with_the_client() -> None:
    ended = anyio.Event()

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with AsyncSandboxClient(api_endpoint="http://h") as client:
        group = client._service.task_group
        assert group is not None
        group.start_soon(work)
        await anyio.wait_all_tasks_blocked()
    assert ended.is_set()


async def test_objects_can_be_made_of_json() -> None:
    async with AsyncSandboxClient(api_endpoint="http://h") as client:
        data = {"name": "box", "status": "stopped", "vcpus": 0.5, "run_config": {"user": "me"}, "unknown": 1}
        sandbox = AsyncSandbox.from_dict(data, client)
        assert (sandbox.status, sandbox.vcpus, sandbox.run_config) == ("stopped", 0.5, RunConfig("me"))
        with pytest.raises(RemoteProtocolError, match="without 'name'"):
            AsyncSandbox.from_dict({}, client)


async def test_the_sync_twin_has_the_same_settings() -> None:
    async with AsyncSandboxClient(api_endpoint="http://h/", api_key="k", timeout=3, max_retries=1) as client:
        twin = client.to_sync()
        assert twin._async._service.settings == client._service.settings
        sandbox = AsyncSandbox.from_dict({"name": "box", "run_config": {"user": "me"}}, client)
        for sync_sandbox in (sandbox.to_sync(), sandbox.to_sync(client=twin)):
            assert sync_sandbox.name == "box"
            assert sync_sandbox.run_config == RunConfig("me")
