"""Images come as archives, which other programs wrote, and go to registries, from which other programs read them."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from typing import TYPE_CHECKING

import anyio
import pytest

from sandbox_aio import AsyncSandboxClient, ResourceCreationError, ResourceNotFoundError, SandboxClientError
from tests.registry import Registry, registry, run
from tests.small_images import shell_image

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    from tests.serving import Server

pytestmark = [pytest.mark.root, pytest.mark.anyio]

ROOM = 64 << 20


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shell_image(tmp_path_factory.mktemp("image"), {"config.user": ["alice"], "config.env": ["GREETING=hi"]})


@pytest.fixture
def name() -> str:
    return f"moved-{uuid.uuid4().hex[:8]}"


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
async def test_an_archive_of_another_program_boots(layout: Path, tmp_path: Path, name: str, form: str) -> None:
    run("skopeo", "copy", "-q", f"oci:{layout}:it", f"{form}:{tmp_path}/image.tar")
    async with AsyncSandboxClient() as client:
        made = await client.import_snapshot(name, tmp_path / "image.tar", tag="t", fs_capacity_bytes=ROOM)
        assert (made.status, made.tags, made.fs_capacity_bytes) == ("ready", ["t"], ROOM)
        async with client.sandbox(snapshot=f"{name}:t") as sandbox:
            assert (await sandbox.run("echo $GREETING $(id -un)")).stdout == "hi alice\n"
        await client.delete_snapshot(made.id)


async def test_what_is_no_archive_or_too_large_is_told(layout: Path, tmp_path: Path, name: str) -> None:
    run("skopeo", "copy", "-q", f"oci:{layout}:it", f"docker-archive:{tmp_path}/image.tar")
    async with AsyncSandboxClient() as client:
        with pytest.raises(ResourceCreationError, match="archive"):
            await client.import_snapshot(name, b"nothing" * 1000)
        with pytest.raises(ResourceCreationError, match="fs_capacity_bytes"):
            await client.import_snapshot(name, tmp_path / "image.tar", fs_capacity_bytes=1000)
        with pytest.raises(SandboxClientError, match="more than"):
            await client.import_snapshot(name, (bytes(1 << 20) for _ in range(66)), fs_capacity_bytes=1000)
        with pytest.raises(SandboxClientError, match="name"):
            await client.import_snapshot("No Name", b"nothing")
        for failed in await client.list_snapshots(name_contains=name):
            await client.delete_snapshot(failed.id)


async def test_of_an_archive_that_breaks_off_nothing_is_left(server: Server, name: str) -> None:
    async def pieces(scope: anyio.CancelScope) -> AsyncGenerator[bytes]:
        for _ in range(8):
            yield bytes(1 << 20)
        while not list(server.state_dir.rglob("import-*/archive")):
            await anyio.sleep(0.01)
        scope.cancel()
        yield b"more"

    async with AsyncSandboxClient() as client:
        with anyio.CancelScope() as scope:
            await client.import_snapshot(name, pieces(scope))
        assert scope.cancelled_caught
        with anyio.fail_after(20):
            while list(server.state_dir.rglob("import-*")):
                await anyio.sleep(0.01)
        assert await client.list_snapshots(name_contains=name) == []


async def test_a_capture_is_pushed_and_read_by_another_program(hub: Registry, layout: Path, name: str) -> None:
    image = hub.push(layout, name, tag="v1")
    async with AsyncSandboxClient() as client:
        made = await client.create_snapshot(name, image, ROOM)
        async with client.sandbox(made.id) as sandbox:
            await sandbox.write("/tmp/kept", "kept")
            captured = await sandbox.capture_snapshot(name, tag="v2")
        digest = await client.push_snapshot(captured.id, f"{hub.host}/{name}:v2")
        found = json.loads(run("skopeo", "inspect", "--tls-verify=false", f"docker://{hub.host}/{name}:v2"))
        assert (found["Digest"], "GREETING=hi" in found["Env"]) == (digest, True)
        again = await client.create_snapshot(f"{name}-again", f"{hub.host}/{name}:v2", ROOM)
        async with client.sandbox(again.id) as sandbox:
            assert (await sandbox.run("cat /tmp/kept; id -un")).stdout == "keptalice\n"
        with pytest.raises(SandboxClientError, match="cannot be pushed"):
            await client.push_snapshot("host", f"{hub.host}/{name}:v3")
        with pytest.raises(ResourceNotFoundError):
            await client.push_snapshot("no-such", f"{hub.host}/{name}:v3")
        for one in (made, captured, again):
            await client.delete_snapshot(one.id)


def test_the_command_line_moves_one_from_here_to_a_registry(
    hub: Registry, layout: Path, tmp_path: Path, name: str
) -> None:
    run("skopeo", "copy", "-q", f"oci:{layout}:it", f"docker-archive:{tmp_path}/image.tar")
    words = ["sandbox-aio", "snapshot"]
    options = {"capture_output": True, "text": True, "timeout": 30, "env": dict(os.environ)}
    done = subprocess.run([*words, "import", tmp_path / "image.tar", f"{name}:t"], **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{name}:t  ")
    pushed = subprocess.run([*words, "push", f"{name}:t", f"{hub.host}/{name}:t"], **options)  # type: ignore[call-overload]
    assert pushed.stdout.startswith("sha256:"), pushed.stderr
    assert subprocess.run([*words, "rm", f"{name}:t"], **options).returncode == 0  # type: ignore[call-overload]
