"""The official Python client makes, finds and deletes sandboxes on our server (wire protocol, sections 1 and 2)."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from langsmith.sandbox import (
    ResourceNotFoundError,
    SandboxAuthenticationError,
    SandboxClientError,
    SandboxConnectionError,
    ValidationError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.serving import Server

pytestmark = pytest.mark.anyio


async def test_a_sandbox_lives_as_long_as_its_block(client: Any) -> None:
    async with await client.sandbox(snapshot="host") as sandbox:
        assert (await client.get_sandbox(sandbox.name)).id == sandbox.id
    with pytest.raises(ResourceNotFoundError):
        await client.get_sandbox(sandbox.name)


async def test_what_a_sandbox_says_of_itself(client: Any) -> None:
    name = f"box-{uuid.uuid4().hex[:8]}"
    (host,) = [snapshot for snapshot in await client.list_snapshots() if snapshot.name == "host"]
    sandbox = await client.create_sandbox(host.id, name=name, labels={"team": "a"}, idle_ttl_seconds=120)
    try:
        assert (sandbox.name, sandbox.status, sandbox.snapshot_id) == (name, "ready", host.id)
        assert (sandbox.idle_ttl_seconds, sandbox.labels) == (120, {"team": "a"})
        assert str(uuid.UUID(sandbox.id)) == sandbox.id
        assert not sandbox.dataplane_url.endswith("/")
        assert sandbox.created_at.endswith("Z")
        assert name in [other.name for other in await client.list_sandboxes()]
        assert (await client.get_sandbox_status(name)).status == "ready"
        assert (await client.get_sandbox(sandbox.id)).name == name
        with pytest.raises(SandboxClientError):  # A name that is taken (409).
            await client.create_sandbox(host.id, name=name)
    finally:
        await client.delete_sandbox(name)
    with pytest.raises(ResourceNotFoundError):
        await client.delete_sandbox(name)


async def test_waiting_for_a_sandbox(client: Any) -> None:
    sandbox = await client.create_sandbox(snapshot="host", wait_for_ready=False)
    try:
        assert (await client.wait_for_sandbox(sandbox.name, poll_interval=0.05)).status == "ready"
    finally:
        await client.delete_sandbox(sandbox.name)


async def test_the_default_snapshot(client: Any) -> None:
    async with await client.sandbox() as sandbox:
        assert (await sandbox.run("python3 -c 'print(2 + 2)'")).stdout == "4\n"


async def test_snapshots(client: Any) -> None:
    by_name = await client.get_snapshot("host")
    assert (by_name.name, by_name.status) == ("host", "ready")
    assert (await client.get_snapshot(by_name.id)).id == by_name.id
    assert (await client.get_snapshot("host:latest")).id == by_name.id
    assert [snapshot.name for snapshot in await client.list_snapshots(name_contains="hos")] == ["host"]
    assert await client.list_snapshots(name_contains="no-such") == []
    with pytest.raises(ResourceNotFoundError) as caught:
        await client.get_snapshot("no-such")
    assert caught.value.resource_type == "snapshot"


@pytest.mark.parametrize("call", ["get_sandbox", "get_sandbox_status", "delete_sandbox"])
@pytest.mark.parametrize("name", ["no-such", "00000000-0000-4000-8000-000000000000", "a/b c"])
async def test_a_sandbox_that_is_not_there(client: Any, call: str, name: str) -> None:
    with pytest.raises(ResourceNotFoundError) as caught:
        await getattr(client, call)(name)
    assert caught.value.resource_type == "sandbox"


async def test_a_snapshot_that_is_not_there(client: Any) -> None:
    with pytest.raises(SandboxClientError, match="no-such"):
        await client.create_sandbox(snapshot="no-such")


@pytest.mark.parametrize("name", ["Upper", "-dash", "a" * 64, "00000000-0000-4000-8000-000000000000"])
async def test_a_name_that_is_not_allowed(client: Any, name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        await client.create_sandbox(snapshot="host", name=name)
    assert caught.value.field == "name"


@pytest.mark.parametrize("key", ["wrong", None])
async def test_a_wrong_key(make_client: Callable[..., Any], key: str | None) -> None:
    async with make_client(api_key=key) as client:
        with pytest.raises(SandboxAuthenticationError):
            await client.list_sandboxes()
        with pytest.raises(SandboxAuthenticationError):
            await client.create_sandbox(snapshot="host")


async def test_a_wrong_key_on_the_data_plane(make_client: Callable[..., Any], sandbox: Any) -> None:
    headers = {"X-Api-Key": "wrong"}
    with pytest.raises(SandboxConnectionError):
        await sandbox.run("true", headers=headers)
    with pytest.raises(SandboxClientError):
        await sandbox.read("/etc/passwd", headers=headers)
    assert (await sandbox.run("true")).success


async def test_a_key_in_the_headers_of_one_call(make_client: Callable[..., Any], server: Server) -> None:
    async with make_client(api_key=None, headers={"X-Api-Key": "key-of-the-tests"}) as client:
        assert (await client.get_snapshot("host")).name == "host"


async def test_the_short_base_path(make_client: Callable[..., Any], server: Server) -> None:
    async with make_client(api_endpoint=f"{server.origin}/v2/sandboxes/") as client:
        async with await client.sandbox(snapshot="host") as sandbox:
            assert (await sandbox.run("echo hi")).stdout == "hi\n"


async def test_a_server_that_is_not_there(make_client: Callable[..., Any]) -> None:
    async with make_client(api_endpoint="http://127.0.0.1:1/api/v2/sandboxes", max_retries=0) as client:
        with pytest.raises(SandboxConnectionError):
            await client.list_sandboxes()


async def test_a_deleted_sandbox_answers_nothing(client: Any) -> None:
    sandbox = await client.create_sandbox(snapshot="host")
    handle = await sandbox.run("sleep 1000", wait=False)
    await client.delete_sandbox(sandbox.name)
    with pytest.raises(SandboxClientError):
        await handle.result
    with pytest.raises(SandboxClientError):
        await sandbox.run("true")
    with pytest.raises(SandboxClientError):
        await sandbox.read("/etc/passwd")


async def test_sandboxes_are_apart(client: Any) -> None:
    async with await client.sandbox(snapshot="host") as one, await client.sandbox(snapshot="host") as other:
        await one.write("/tmp/mine", "x")
        assert not (await other.run("test -e /tmp/mine")).success
        assert (await one.run("hostname")).stdout != (await other.run("hostname")).stdout
