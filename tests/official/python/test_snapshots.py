"""The official Python client's quick start on our server: an image of a registry becomes a snapshot, a sandbox of it
runs Python, what it changes is captured, and boots. Wire protocol, sections 1.10 and 1.11.
"""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from langsmith.sandbox import ResourceCreationError, ResourceNotFoundError

pytestmark = [pytest.mark.anyio, pytest.mark.root]

ROOM = 256 << 20


@pytest.fixture
def name() -> str:
    return f"team/{uuid.uuid4().hex[:8]}"


async def test_the_quick_start(client: Any, image: str, name: str) -> None:
    snapshot = await client.create_snapshot(name=name, docker_image=image, fs_capacity_bytes=ROOM)
    assert (snapshot.name, snapshot.status, snapshot.tags, snapshot.docker_image) == (name, "ready", ["3"], image)
    async with await client.sandbox(snapshot_id=snapshot.id) as sandbox:
        result = await sandbox.run("python -c 'print(2 + 2)'")
        assert (result.stdout, result.success) == ("4\n", True)
    async with await client.sandbox(snapshot=f"{name}:3") as sandbox:
        assert (await sandbox.run("cat /etc/passwd")).stdout.startswith("root:x:0:0:")
    await client.delete_snapshot(snapshot.id)


async def test_a_sandbox_is_captured_and_the_capture_boots(client: Any, image: str, name: str) -> None:
    await client.create_snapshot(name, image, ROOM, tag="base", run_config={"env_vars": {"GREETING": "hello"}})
    async with await client.sandbox(snapshot=f"{name}:base") as sandbox:
        assert (await sandbox.run("echo $GREETING")).stdout == "hello\n"
        await sandbox.write("/srv/data.txt", "kept")
        await sandbox.run("rm /etc/group")
        captured = await sandbox.capture_snapshot(name)
        assert (await sandbox.run("cat /srv/data.txt")).stdout == "kept"
        again = await client.capture_snapshot(sandbox.name, name, tag="second")
    assert (captured.status, captured.source_sandbox_id, captured.tags) == ("ready", sandbox.id, ["latest"])
    tags = {tag.tag: tag.snapshot_id for tag in await client.list_snapshot_tags(name)}
    assert (set(tags), tags["latest"], tags["second"]) == ({"base", "latest", "second"}, captured.id, again.id)
    async with await client.sandbox(captured.id) as sandbox:
        assert (await sandbox.run("cat /srv/data.txt; ls /etc/group; python -c 'print(2 + 2)'")).stdout == "kept4\n"
    found = await client.list_snapshots(name_contains=name, limit=2)
    assert len(found) == 2
    for snapshot_id in tags.values():
        await client.delete_snapshot(snapshot_id)
    with pytest.raises(ResourceNotFoundError) as caught:
        await client.get_snapshot(captured.id)
    assert caught.value.resource_type == "snapshot"


async def test_an_image_that_is_not_there(client: Any, image: str, name: str) -> None:
    with pytest.raises(ResourceCreationError, match="missing"):
        await client.create_snapshot(name, f"{image}-missing", ROOM)


async def test_the_life_of_a_registry(client: Any) -> None:
    name = f"hub-{uuid.uuid4().hex[:8]}"
    registries = client.registries
    made = await registries.create(name=name, url="registry.example.com", username="robot", password="secret")
    assert (made.name, made.provider, made.auth_type) == (name, "DOCKER_REGISTRY", "DOCKER_CONFIG")
    assert "secret" not in repr(made)
    assert (await registries.retrieve(name)).id == made.id
    assert (await registries.update(name, body_name=f"{name}-2", password="other")).id == made.id
    assert [one.name for one in (await registries.list(name_contains=name)).registries] == [f"{name}-2"]
    await registries.delete(f"{name}-2")
    assert (await registries.list(name_contains=name)).registries == []
