"""What is measured of images and snapshots: ours through the client and a real server, beside the programs that people
use for the same work.

A registry and the images in it are there while the server of a row is (`image_server`): `debian:1`, the smallest
system of this machine's distribution in one layer, and `debian:20`, that with nineteen small
layers more, and `fresh:0` and so on, each of which no other image shares a layer chain with.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import io
import itertools
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread

from benchmarks.subject import Subject, expect
from tests.real.root_trees import debian
from tests.registry import Registry, make_image, run

if TYPE_CHECKING:
    from pathlib import Path

    pass

__all__ = ["IMAGE_WORKLOADS", "REGISTRY_VARIABLE", "push_images"]

REGISTRY_VARIABLE: Final = "BENCHMARK_REGISTRY"
"""The variable that tells a worker where the registry is, as `host:port`."""
CAPACITY: Final = 4 << 30
PATIENCE: Final = 120
FRESH_IMAGES: Final = 24
"""Images that are each pulled once by each side: as many as there may be rounds."""
_fresh: Final = itertools.count()

FILL: Final = """\
import os, sys
folder, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.makedirs(folder)
for number in range(count):
    if number % 100 == 0:
        os.mkdir(f"{folder}/{number // 100}")
    with open(f"{folder}/{number // 100}/{number}", "wb") as file:
        for _ in range(max(1, size >> 20)):
            file.write(os.urandom(min(size, 1 << 20)))
"""
"""Writes files of random bytes; run by a Python of the host, through a mount or below a sandbox's root."""


def push_images(registry: Registry, folder: Path) -> None:
    """Make the images in `folder`, and push them."""

    def system(root: Path) -> None:
        subprocess.run(["cp", "-a", f"{debian()}/.", root], check=True)

    layout = make_image(folder, [system])
    registry.push(layout, "debian", tag="1")
    run("umoci", "tag", "--image", f"{layout}:it", "one")
    for number in range(19):
        extra = folder / f"layer-{number}"
        extra.mkdir()
        (extra / "file").write_text("x" * 10_000)
        run("umoci", "insert", "--image", f"{layout}:it", extra, f"/usr/share/layer-{number}")
    registry.push(layout, "debian", tag="20")
    shutil.copytree(layout, folder / "fresh")
    for number in range(FRESH_IMAGES):
        _under(folder / "fresh", layout, number)
        registry.push(folder / "fresh", "fresh", tag=str(number))


def _under(fresh: Path, layout: Path, number: int) -> None:
    """Make the image `it` of a layout one of two layers: a tiny one that no other image has, and the system."""
    system = _read(layout, _manifest(layout, "one"))
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("number")
        member.size = 4
        tar.addfile(member, io.BytesIO(f"{number:4}".encode()))
    tiny = _blob(fresh, archive.getvalue())
    config = json.loads((layout / "blobs/sha256" / system["config"]["digest"][7:]).read_text())
    config["rootfs"]["diff_ids"].insert(0, tiny["digest"])
    config.pop("history", None)
    manifest = {
        **system,
        "config": {"mediaType": system["config"]["mediaType"], **_blob(fresh, json.dumps(config).encode())},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", **tiny}, *system["layers"]],
    }
    entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", **_blob(fresh, json.dumps(manifest).encode())}
    entry["annotations"] = {"org.opencontainers.image.ref.name": "it"}
    (fresh / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def _manifest(layout: Path, name: str) -> str:
    for entry in json.loads((layout / "index.json").read_text())["manifests"]:
        if entry["annotations"]["org.opencontainers.image.ref.name"] == name:
            return str(entry["digest"])
    raise AssertionError(name)


def _read(layout: Path, digest: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((layout / "blobs/sha256" / digest[7:]).read_text())
    return document


def _blob(layout: Path, data: bytes) -> dict[str, Any]:
    name = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / name).write_bytes(data)
    return {"digest": f"sha256:{name}", "size": len(data)}


def _image(name: str) -> str:
    return f"{os.environ[REGISTRY_VARIABLE]}/{name}"


async def image_pull(subject: Subject) -> float:
    """Return the seconds that it takes to pull and unpack an image of which nothing is there yet."""
    image = f"fresh:{next(_fresh)}"
    await anyio.to_thread.run_sync(os.sync)
    start = time.perf_counter()
    snapshot = await subject.client.create_snapshot(image.replace(":", "-"), _image(image), CAPACITY, timeout=PATIENCE)
    seconds = time.perf_counter() - start
    expect(snapshot.status, "ready", image)
    return seconds


async def skopeo_umoci(_: Subject | None) -> float:
    """Return the seconds that `skopeo copy` and `umoci unpack` take for the same."""
    image = f"fresh:{next(_fresh)}"

    def work() -> float:
        folder = f"{_folder()}/{image}"
        os.sync()
        start = time.perf_counter()
        run("skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{_image(image)}", f"oci:{folder}/layout:it")
        run("umoci", "unpack", "--image", f"{folder}/layout:it", f"{folder}/bundle")
        return time.perf_counter() - start

    return await anyio.to_thread.run_sync(work)


@functools.cache
def _folder() -> str:
    """What lasts as long as this process. Nothing in it is removed earlier: for a minute after many files were deleted,
    ext4 is slow to make new ones nearby.
    """
    folder = tempfile.mkdtemp(prefix="sandbox-aio-benchmark-", dir="/var/tmp")
    atexit.register(subprocess.run, ["rm", "-rf", folder], check=False)
    return folder


async def boot(subject: Subject, image: str) -> float:
    """Return the seconds that it takes to create a sandbox of an image, run `true` in it, and delete it."""
    snapshot = await _snapshot(subject, image)
    start = time.perf_counter()
    sandbox = await subject.client.create_sandbox(snapshot)
    result = await sandbox.run("true")
    await subject.client.delete_sandbox(sandbox.name)
    seconds = time.perf_counter() - start
    expect(result.exit_code, 0, "true")
    return seconds


async def capture(subject: Subject, image: str, files: int, size: int) -> float:
    """Return the seconds that it takes to capture a running sandbox that has written so many files of so many bytes."""
    sandbox = await _filled(subject, image, files, size)
    await anyio.to_thread.run_sync(os.sync)
    start = time.perf_counter()
    captured = await subject.client.capture_snapshot(sandbox.name, "captured", timeout=PATIENCE)
    seconds = time.perf_counter() - start
    expect(captured.status, "ready", "capture")
    await subject.client.delete_snapshot(captured.id)
    await subject.client.delete_sandbox(sandbox.name)
    return seconds


async def buildah_commit(_: Subject | None, image: str, files: int, size: int) -> float:
    """Return the seconds that `buildah commit` takes for a container that has written the same."""

    def work() -> float:
        container = run("buildah", "from", "--tls-verify=false", _image(image)).strip()
        try:
            root = run("buildah", "mount", container).strip()
            run("python3", "-c", FILL, f"{root}/filled", str(files), str(size))
            os.sync()
            start = time.perf_counter()
            made = run("buildah", "commit", "-q", container).strip()
            seconds = time.perf_counter() - start
        finally:
            run("buildah", "rm", container)
        run("buildah", "rmi", made)
        return seconds

    return await anyio.to_thread.run_sync(work)


async def fork(subject: Subject, image: str, times: int) -> float:
    """Return the seconds that it takes to capture a running sandbox and to create so many of the capture."""
    sandbox = await _filled(subject, image, 100, 10_240)
    start = time.perf_counter()
    captured = await subject.client.capture_snapshot(sandbox.name, "forked", timeout=PATIENCE)
    made = [await subject.client.create_sandbox(captured.id) for _ in range(times)]
    seconds = time.perf_counter() - start
    for one in (*made, sandbox):
        await subject.client.delete_sandbox(one.name)
    await subject.client.delete_snapshot(captured.id)
    return seconds


async def create_many(subject: Subject, image: str, times: int) -> float:
    """Return the seconds that it takes to create so many sandboxes of an image."""
    snapshot = await _snapshot(subject, image)
    start = time.perf_counter()
    made = [await subject.client.create_sandbox(snapshot) for _ in range(times)]
    seconds = time.perf_counter() - start
    for one in made:
        await subject.client.delete_sandbox(one.name)
    return seconds


async def _snapshot(subject: Subject, image: str) -> str:
    """The id of the snapshot of an image, which is made when it is first asked for."""
    name = image.replace(":", "-")
    for known in await subject.client.list_snapshots(name_contains=name):
        if known.name == name:
            return str(known.id)
    made = await subject.client.create_snapshot(name, _image(image), CAPACITY, timeout=PATIENCE)
    return str(made.id)


async def _filled(subject: Subject, image: str, files: int, size: int) -> Any:
    sandbox = await subject.client.create_sandbox(await _snapshot(subject, image))
    script = f"""set -e
mkdir /filled; cd /filled
dd if=/dev/urandom of=all bs={size} count={files} iflag=fullblock 2>/dev/null
[ {files} = 1 ] || {{ split -b {size} -a 4 all; rm all; }}
sync -f ."""
    result = await sandbox.run(script, timeout=PATIENCE)
    expect((result.exit_code, result.stderr), (0, ""), "fill")
    return sandbox


IMAGE_WORKLOADS = (image_pull, skopeo_umoci, boot, capture, buildah_commit, fork, create_many)
