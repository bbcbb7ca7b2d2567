"""The client against `sandbox-aio serve`: everything but the streaming of commands, which has tests of its own."""

from __future__ import annotations

import io
import uuid
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest

from sandbox_aio import (
    AsyncSandbox,
    AsyncSandboxClient,
    ResourceAlreadyExistsError,
    ResourceNotFoundError,
    SandboxAuthenticationError,
    SandboxClientError,
    SandboxOperationError,
)
from tests.client.checkpoints import cancel_at
from tests.serving import API_KEY, Server, serving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("serve")) as running:
        yield running


@pytest.fixture
async def client(server: Server) -> AsyncGenerator[AsyncSandboxClient]:
    async with AsyncSandboxClient(api_endpoint=server.endpoint, api_key=API_KEY) as made:
        yield made


@pytest.fixture
async def sandbox(client: AsyncSandboxClient) -> AsyncGenerator[AsyncSandbox]:
    async with client.sandbox() as made:
        yield made


async def test_snapshots(client: AsyncSandboxClient) -> None:
    (host,) = [snapshot for snapshot in await client.list_snapshots() if snapshot.name == "host"]
    assert uuid.UUID(host.id).version is not None
    for reference in (host.id, "host", "host:latest"):
        assert (await client.get_snapshot(reference)).id == host.id
    assert (await client.wait_for_snapshot(host.id)).status == "ready"
    with pytest.raises(ResourceNotFoundError) as caught:
        await client.get_snapshot("nothing")
    assert caught.value.resource_type == "snapshot"


async def test_the_life_of_a_sandbox(client: AsyncSandboxClient) -> None:
    name = f"mine-{uuid.uuid4().hex[:8]}"
    sandbox = await client.create_sandbox(snapshot="host", name=name, labels={"a": "b"})
    try:
        assert (sandbox.name, sandbox.status, sandbox.labels) == (name, "ready", {"a": "b"})
        with pytest.raises(ResourceAlreadyExistsError):
            await client.create_sandbox(name=name)
        assert name in [box.name for box in await client.list_sandboxes()]
        assert (await client.get_sandbox(name)).id == sandbox.id
        await sandbox.write("kept", "x")
        await sandbox.stop()
        assert (await client.get_sandbox_status(name)).status == "stopped"
        await sandbox.start()
        assert (sandbox.status, await sandbox.read("kept")) == ("ready", b"x")
    finally:
        await sandbox.delete()
    with pytest.raises(ResourceNotFoundError):
        await client.get_sandbox_status(name)
    with pytest.raises(ResourceNotFoundError):
        await sandbox.delete()


async def test_what_is_wrong_is_said(server: Server, client: AsyncSandboxClient) -> None:
    async with AsyncSandboxClient(api_endpoint=server.endpoint, api_key="wrong") as stranger:
        with pytest.raises(SandboxAuthenticationError, match="LANGSMITH_API_KEY"):
            await stranger.list_sandboxes()
    with pytest.raises(SandboxClientError, match="nothing"):
        await client.create_sandbox(snapshot="nothing")
    with pytest.raises(ResourceNotFoundError):
        await client.get_sandbox("no-such-box")


async def test_files(sandbox: AsyncSandbox, tmp_path: Path) -> None:
    await sandbox.write("/app/new/a b.txt", "héllo\nworld\n")
    assert (await sandbox.read("/app/new/a b.txt")).decode() == "héllo\nworld\n"
    stat = await sandbox.stat("/app/new/a b.txt")
    assert stat.size_bytes == 13
    part = await sandbox.read_range("/app/new/a b.txt", start=7, end=11)
    assert (part.content, part.start, part.total_bytes, part.partial) == (b"world", 7, 13, True)
    assert (await sandbox.read_range("/app/new/a b.txt", start=0, if_none_match=stat.etag)).unchanged
    with pytest.raises(SandboxOperationError):
        await sandbox.read_range("/app/new/a b.txt", start=13)
    assert [(match.line, match.text) for match in await sandbox.grep("wor", "/app")] == [(2, "world")]
    assert [found.path for found in await sandbox.ls("/app/new")] == ["/app/new/a b.txt"]
    assert [found.path for found in await sandbox.glob("**/*.txt", "/app")] == ["/app/new/a b.txt"]
    with pytest.raises(ResourceNotFoundError, match="no '/app/none'"):
        await sandbox.read("/app/none")
    with pytest.raises(SandboxOperationError):
        await sandbox.write("/app", "a directory")


async def test_streams(sandbox: AsyncSandbox, tmp_path: Path) -> None:
    big = bytes(range(256)) * 40_000
    local = tmp_path / "big"
    local.write_bytes(big)
    await sandbox.upload("/tmp/a", local)
    await sandbox.upload("/tmp/b", io.BytesIO(big))
    assert (await sandbox.run("cmp /tmp/a /tmp/b && wc -c < /tmp/a")).stdout.strip() == str(len(big))
    assert await sandbox.download("/tmp/b", tmp_path / "back") == len(big)
    assert (tmp_path / "back").read_bytes() == big


async def test_cancelled_at_any_await_the_server_has_no_sandbox_left(client: AsyncSandboxClient) -> None:
    async def use() -> None:
        async with client.sandbox() as sandbox:
            await sandbox.write("/tmp/a", "x")
            await sandbox.run("true")

    number = 0
    with anyio.fail_after(50):
        while await cancel_at(number, use):
            assert [box.name for box in await client.list_sandboxes()] == []
            number += 1
    assert number > 10


async def test_an_unanswered_request_is_not_the_servers_last(server: Server) -> None:
    """A client that hangs up in the middle of its request disturbs nobody."""
    async with await anyio.connect_tcp("127.0.0.1", httpx.URL(server.origin).port or 0) as stream:
        await stream.send(b"POST /api/v2/sandboxes/boxes HTTP/1.1\r\ncontent-length: 10\r\n\r\n{")
    async with AsyncSandboxClient(api_endpoint=server.endpoint, api_key=API_KEY) as client:
        assert await client.list_sandboxes() == []
