"""A server that is killed at random instants, in the middle of pulls, unpacking, captures and deletes.

The next one on the same directory keeps what was promised, forgets what was deleted, and leaves nothing on the disk
that no snapshot refers to.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import httpx
import pytest

from sandbox_aio.runtimes.namespaces import NamespacesRuntime
from tests.registry import make_image, registry
from tests.runtimes.roots import small_root
from tests.serving import SANDBOX_AIO

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = [pytest.mark.anyio, pytest.mark.root]

SEEDS = range(6)
KILLS = 4
PATIENCE = 20.0
ROOM = 1 << 30
KINDS = ("pull", "pull", "delete", "capture", "tag")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


def _files(count: int, size: int, seed: int) -> Any:
    def change(root: Path) -> None:
        folder = root / "srv" / str(seed)
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / str(number)).write_bytes(random.Random(seed * 1000 + number).randbytes(size))

    return change


def _root(root: Path) -> None:
    small_root(root)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Images that share their lowest layer: one of few large files, one of many small ones."""
    folder = tmp_path_factory.mktemp("images")
    with registry(folder / "hub") as hub:
        large = make_image(folder / "large", [_root, _files(8, 1 << 20, 1), _files(4, 1 << 20, 2)])
        small = make_image(folder / "small", [_root, _files(1500, 200, 3)])
        yield [hub.push(large, "large"), hub.push(small, "small")]


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """Short, since the paths of sockets are; and on a disk."""
    path = Path(tempfile.mkdtemp(prefix="t-", dir="/var/tmp"))
    yield path
    asyncio.run(_destroy(path))
    shutil.rmtree(path)


async def _destroy(state_dir: Path) -> None:
    """End the sandboxes that the killed servers have left."""
    runtime = NamespacesRuntime(state_dir, ephemeral=False)
    await runtime.open(lambda id, reason: None)
    await runtime.aclose(destroy=True)


@contextlib.asynccontextmanager
async def a_server(state_dir: Path) -> AsyncIterator[tuple[subprocess.Popen[bytes], httpx.AsyncClient]]:
    command: list[str | Path] = [
        SANDBOX_AIO,
        "serve",
        "--no-ephemeral",
        "--port",
        "0",
        "--state-dir",
        state_dir,
        "--egress",
        "closed",
    ]
    with (state_dir / "log").open("ab") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
    with process:
        try:
            assert process.stdout is not None
            line = (await asyncio.to_thread(process.stdout.readline)).decode()
            assert line, (state_dir / "log").read_text()
            async with httpx.AsyncClient(base_url=f"{line.split()[2][:-1]}/v2/sandboxes", timeout=PATIENCE) as http:
                yield process, http
        finally:
            process.kill()


@attrs.define
class Promises:
    """What the servers have answered."""

    made: set[str] = attrs.field(factory=set)
    """Snapshots that were answered with 201."""
    ready: set[str] = attrs.field(factory=set)
    """Those of them that were shown to be ready."""
    doubtful: set[str] = attrs.field(factory=set)
    """Those whose deletion was asked for, and not answered."""
    deleted: set[str] = attrs.field(factory=set)
    """Those whose deletion was answered."""

    def saw(self, snapshot: dict[str, Any]) -> None:
        self.made.add(snapshot["id"])
        if snapshot["status"] == "ready":
            self.ready.add(snapshot["id"])


class Mischief:
    """What happens at once to a server, until it is killed."""

    def __init__(self, http: httpx.AsyncClient, promises: Promises, images: list[str], draw: random.Random) -> None:
        self._http = http
        self._promises = promises
        self._images = images
        self._draw = draw

    async def run(self) -> None:
        """One thing after another. Ends when the server does."""
        with contextlib.suppress(httpx.TransportError):
            while True:
                await getattr(self, self._draw.choice(KINDS))()

    async def pull(self) -> None:
        body = {"name": "it", "docker_image": self._draw.choice(self._images), "fs_capacity_bytes": ROOM}
        await self._make("/snapshots", body)

    async def capture(self) -> None:
        if (snapshot := await self._any()) is None or snapshot["status"] != "ready":
            return
        answer = await self._http.post("/boxes", json={"snapshot_id": snapshot["id"]})
        if answer.status_code != 201:
            return  # It was deleted meanwhile.
        box = answer.json()
        command = {"command": f"touch /srv/{box['id']}", "timeout": 10}
        assert (await self._http.post(f"/{box['id']}/execute", json=command)).status_code == 200
        await self._make(f"/boxes/{box['id']}/snapshot", {"name": "captured"})
        await self._http.delete(f"/boxes/{box['id']}")

    async def tag(self) -> None:
        if (snapshot := await self._any()) is not None:
            await self._http.post(f"/snapshots/{snapshot['id']}/tags", json={"tag": str(self._draw.randrange(3))})

    async def delete(self) -> None:
        if (snapshot := await self._any()) is None:
            return
        self._promises.doubtful.add(snapshot["id"])
        answer = await self._http.delete(f"/snapshots/{snapshot['id']}")
        assert answer.status_code in (204, 404), answer.text
        self._promises.deleted.add(snapshot["id"])

    async def _make(self, path: str, body: dict[str, Any]) -> None:
        answer = await self._http.post(path, json=body)
        assert answer.status_code in (201, 429), answer.text
        if answer.status_code == 201:
            self._promises.saw(answer.json())

    async def _any(self) -> dict[str, Any] | None:
        snapshots = await ours(self._http)
        for snapshot in snapshots:
            self._promises.saw(snapshot)
        return self._draw.choice(snapshots) if snapshots else None


async def ours(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    return [one for one in (await http.get("/snapshots")).json()["items"] if one["name"] != "host"]


async def settled(http: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    """All snapshots once none is being built."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = await ours(http)
        if not {one["status"] for one in found} & {"building", "deleting"}:
            break
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.02)
    return {one["id"]: one for one in found}


def require_promises(promises: Promises, found: dict[str, dict[str, Any]]) -> None:
    assert not promises.deleted & found.keys()
    assert promises.made - promises.doubtful <= found.keys()
    for id in (promises.ready & found.keys()) - promises.doubtful:
        assert found[id]["status"] == "ready", found[id]
    for one in found.values():  # Pulls are begun again; captures cannot be.
        if one["status"] == "failed":
            assert one["source_sandbox_id"] is not None, one
            assert "do it again" in one["status_message"] or "there is no sandbox" in one["status_message"], one


async def require_clean_disk(state_dir: Path) -> None:
    """Nothing is there but whole layers, as soon as the rest is removed."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(FileNotFoundError):
            if (difference := _difference(state_dir)) is None:
                return
        assert time.monotonic() < deadline, difference
        await asyncio.sleep(0.05)


def _difference(state_dir: Path) -> str | None:
    there = {path.name for path in (state_dir / "layers").iterdir()} - {"last"}
    blobs = [path.name for path in (state_dir / "blobs").iterdir()]
    unknown = [name for name in there if not name.isdigit()]
    if blobs or unknown:
        return f"{blobs} and {unknown} are left"
    for name in there:
        info = json.loads((state_dir / "layers" / name / "layer.json").read_text())
        tree = state_dir / "layers" / name / "tree"
        if info["size_bytes"] != (size := _size(tree)):
            return f"layer {name} should hold {info['size_bytes']} bytes, and holds {size}"
    return None


def _size(tree: Path) -> int:
    found = {}
    for folder, _, names in os.walk(tree):
        for name in names:
            status = os.lstat(os.path.join(folder, name))
            found[status.st_ino] = status.st_size if os.path.isfile(os.path.join(folder, name)) else 0
    return sum(found.values())


def require_referenced(state_dir: Path) -> None:
    """The layers that are there are those of the snapshots."""
    with contextlib.closing(sqlite3.connect(state_dir / "server.db")) as database:
        records = [json.loads(text) for (text,) in database.execute("SELECT record FROM snapshots")]
    assert {name for name in os.listdir(state_dir / "layers") if name != "last"} == {
        layer for record in records for layer in record["layers"]
    }


async def require_boots(http: httpx.AsyncClient, snapshots: list[dict[str, Any]]) -> None:
    for snapshot in snapshots:
        box = (await http.post("/boxes", json={"snapshot_id": snapshot["id"]})).json()
        answer = (await http.post(f"/{box['id']}/execute", json={"command": "ls /srv /srv/*", "timeout": 10})).json()
        assert answer["exit_code"] == 0, answer
        files = len(answer["stdout"].split())
        assert files > (1500 if "/small" in (snapshot["docker_image"] or "") else 10), answer
        assert (await http.delete(f"/boxes/{box['id']}")).status_code == 204


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_killed_server_keeps_its_promises_and_leaks_nothing(
    state_dir: Path, images: list[str], seed: int
) -> None:
    draw = random.Random(seed)
    promises = Promises()
    for _ in range(KILLS):
        async with a_server(state_dir) as (process, http):
            pause = draw.uniform(0.0, 0.8)
            tasks = [
                asyncio.create_task(Mischief(http, promises, images, random.Random(draw.random())).run())
                for _ in range(5)
            ]
            await asyncio.sleep(pause)  # The instant of the kill is what is drawn.
            process.send_signal(signal.SIGKILL)
            await asyncio.gather(*tasks)
    async with a_server(state_dir) as (process, http):
        for box in (await http.get("/boxes")).json()["items"]:  # They hold on to the layers of what was deleted.
            assert (await http.delete(f"/boxes/{box['id']}")).status_code in (204, 404)
        found = await settled(http)
        require_promises(promises, found)
        await require_boots(http, [one for one in found.values() if one["status"] == "ready"][:3])
        await require_clean_disk(state_dir)
        process.kill()
    require_referenced(state_dir)
    async with a_server(state_dir) as (process, http):
        assert (await settled(http)).keys() == found.keys()
        for id in found:
            assert (await http.delete(f"/snapshots/{id}")).status_code == 204
        deadline = time.monotonic() + PATIENCE
        while (left := [path.name for path in (state_dir / "layers").iterdir()]) not in ([], ["last"]):
            assert time.monotonic() < deadline, left
            await asyncio.sleep(0.02)
