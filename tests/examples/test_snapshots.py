"""The quick start from an image of a registry, as a reader would type it: ours on asyncio, on trio and in plain Python,
and the official client, which has tests of its own beside, in plain Python.
"""

from __future__ import annotations

import importlib
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from sandbox_aio import AsyncSandboxClient, Registry, ResourceCreationError, SandboxClient
from tests.examples.conftest import OFFICIAL, OFFICIAL_MARKS, OURS
from tests.registry import PASSWORD, USER, registry
from tests.small_images import python_image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

ROOM = 256 << 20


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return python_image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, layout: Path) -> Iterator[str]:
    with registry(tmp_path_factory.mktemp("hub")) as hub:
        yield hub.push(layout, "team/python", tag="3")


@pytest.fixture(scope="module")
def private_image(tmp_path_factory: pytest.TempPathFactory, layout: Path) -> Iterator[str]:
    """An image that only `USER` may have."""
    with registry(tmp_path_factory.mktemp("private"), users=True) as hub:
        yield hub.push(layout, "team/python", tag="3")


@pytest.fixture
def name() -> str:
    return f"python-{uuid.uuid4().hex[:8]}"


@pytest.mark.parametrize("module", [OURS, pytest.param(OFFICIAL, marks=OFFICIAL_MARKS)])
def test_e1_from_an_image(module: str, image: str, name: str) -> None:
    m = importlib.import_module(module)
    client = m.SandboxClient()
    snapshot = client.create_snapshot(name=name, docker_image=image, fs_capacity_bytes=ROOM)
    with client.sandbox(snapshot_id=snapshot.id) as sb:
        result = sb.run("python -c 'print(2 + 2)'")
        assert (result.stdout, result.success) == ("4\n", True)
    client.delete_snapshot(snapshot.id)
    client.close()


@pytest.mark.anyio
async def test_from_an_image_to_a_capture(image: str, name: str) -> None:
    told: list[str] = []
    async with AsyncSandboxClient() as client:
        snapshot = await client.create_snapshot(name, image, ROOM, on_progress=told.append)
        assert all("of" in message for message in told)
        async with client.sandbox(snapshot_id=snapshot.id) as sandbox:
            assert (await sandbox.run("python -c 'print(2 + 2)'")).stdout == "4\n"
            await sandbox.write("/srv/kept", "kept")
            captured = await sandbox.capture_snapshot(name, tag="captured")
            assert captured.source_sandbox_id == sandbox.id
        async with client.sandbox(snapshot=f"{name}:captured") as sandbox:
            assert (await sandbox.run("cat /srv/kept; python -c 'print(2 + 2)'")).stdout == "kept4\n"
        tagged = await client.tag_snapshot(captured.id, "stable", name=f"{name}-b")
        assert tagged.id == captured.id
        assert [(tag.tag, tag.snapshot_id) for tag in await client.list_snapshot_tags(f"{name}-b")] == [
            ("stable", captured.id)
        ]
        for one in (snapshot, captured):
            await client.delete_snapshot(one.id)
        assert await client.list_snapshots(name_contains=name) == []


@pytest.mark.anyio
async def test_a_private_image_needs_the_registry(private_image: str, name: str) -> None:
    async with AsyncSandboxClient() as client:
        with pytest.raises(ResourceCreationError, match="wants a user name and a password"):
            await client.create_snapshot(name, private_image, ROOM)
        host = private_image.partition("/")[0]
        made = await client.registries.create(name=name, url=host, username=USER, password="wrong")
        with pytest.raises(ResourceCreationError):
            await client.create_snapshot(name, private_image, ROOM, registry_id=made.id)
        await client.registries.update(name, username=USER, password=PASSWORD)
        snapshot = await client.create_snapshot(name, private_image, ROOM, registry_id=made.id)
        assert (snapshot.status, snapshot.registry_id) == ("ready", made.id)
        await client.registries.delete(name)
        await client.delete_snapshot(snapshot.id)


def test_registries_in_plain_python(private_image: str, name: str) -> None:
    host = private_image.partition("/")[0]
    with SandboxClient() as client:
        made = client.registries.create(name=name, url=host, username=USER, password=PASSWORD)
        assert client.registries.retrieve(name) == made
        assert [one.name for one in client.registries.list(name_contains=name)] == [name]
        assert isinstance(client.registries.update(name, body_name=f"{name}-b"), Registry)
        messages: list[str] = []
        snapshot = client.create_snapshot(
            name, private_image, ROOM, registry_id=made.id, tag="t", on_progress=messages.append
        )
        assert snapshot.tags == ["t"]
        with client.sandbox(snapshot=f"{name}:t") as sandbox:
            captured: Any = client.capture_snapshot(sandbox.name, name, tag="u")
        assert [tag.tag for tag in client.list_snapshot_tags(name)] == ["t", "u"]
        client.registries.delete(f"{name}-b")
        for one in (snapshot, captured):
            client.delete_snapshot(one.id)
